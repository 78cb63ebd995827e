"""ResNet-50 of the ImageNet design, with a stem for small images (3×3 convolution, no pooling).

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.1: four stages of
bottleneck blocks; the stride sits on the 3×3 convolution.

Pre-activations: the sum of a stage's last block before its ReLU.
Initialisation: convolutions normal with variance 2/(k²·out), BN weight 1 and bias 0, the linear layer
PyTorch's default.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import conv1x1, conv3x3, init_convolutions, projection, run_stages, stage_of

__all__ = ["ResNet50"]

EXPANSION = 4


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 beside a shortcut: (B, c, h, w) -> (B, width_out, h/stride, w/stride), before the ReLU."""

    def __init__(self, width_in: int, width_out: int, stride: int):
        super().__init__()
        width = width_out // EXPANSION
        self.conv1 = conv1x1(width_in, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, width_out)
        self.bn3 = nn.BatchNorm2d(width_out)
        reshapes = stride != 1 or width_in != width_out
        self.shortcut = projection(width_in, width_out, stride) if reshapes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.shortcut(x)


class ResNet50(Classifier):
    """The ResNet-50 of this module's header."""

    head_name = "linear"

    def __init__(self, num_classes: int = 100):
        super().__init__("ResNet50")
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage_of(Bottleneck, 64, 256, blocks=3, stride=1)
        self.layer2 = stage_of(Bottleneck, 256, 512, blocks=4, stride=2)
        self.layer3 = stage_of(Bottleneck, 512, 1024, blocks=6, stride=2)
        self.layer4 = stage_of(Bottleneck, 1024, 2048, blocks=3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        init_convolutions(self)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        # Adaptive as published: the other families' published windows round differently.
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def outputs(self, x: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = run_stages(stem, self.layer1, self.layer2, self.layer3, self.layer4)
        return self.finish(stem, stages, preacts, stages[-1])
