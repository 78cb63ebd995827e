"""MobileNetV1 at full width, for ImageNet: the student of the published pair ResNet50 -> MobileNetV1.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
table 1: a 3×3 convolution and thirteen depthwise separable ones. The attributes `model` and `fc` are named as
in mdistiller (Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022), so that its checkpoints load.

The stem is the first convolution's map; a stage ends with the last map of its size, at 1/4, 1/8, 1/16 and 1/32
of the image's. Pre-activations: a stage's last BN, before its ReLU.
Initialisation: PyTorch's defaults throughout, as in mdistiller.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import conv1x1, conv3x3

__all__ = ["MobileNetV1"]

STEM = 32
# Channels and stride of each separable convolution.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
# Where the stages end, the stem's convolution being 0.
STAGE_ENDS = (3, 5, 11, 13)


class MobileNetV1(Classifier):
    """The MobileNetV1 of this module's header."""

    def __init__(self, num_classes: int = 1000):
        super().__init__("MobileNetV1")
        blocks, width = [nn.Sequential(conv3x3(3, STEM, stride=2), nn.BatchNorm2d(STEM))], STEM
        for width_out, stride in BLOCKS:
            blocks.append(_separable(width, width_out, stride))
            width = width_out
        self.model = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, num_classes)

    def outputs(self, x: Tensor) -> Outputs:
        stages, preacts = [], []
        for i, block in enumerate(self.model):
            preact = block(x)
            x = F.relu(preact)
            if i == 0:
                stem = x
            if i in STAGE_ENDS:
                stages.append(x)
                preacts.append(preact)
        return self.finish(stem, stages, preacts, x)


def _separable(width_in: int, width: int, stride: int) -> nn.Sequential:
    """Depthwise 3×3, then 1×1, each with BN: (B, c, h, w) -> (B, width, h/stride, w/stride), without the last ReLU."""
    return nn.Sequential(
        conv3x3(width_in, width_in, stride, groups=width_in),
        nn.BatchNorm2d(width_in),
        nn.ReLU(),
        conv1x1(width_in, width),
        nn.BatchNorm2d(width),
    )
