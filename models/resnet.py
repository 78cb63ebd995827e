"""ResNets for small images: three stages of basic blocks, depth 6n+2.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with projection
shortcuts where the shape changes. The "x4" networks are four times as wide in the stages, twice in the stem
(Tian et al., "Contrastive Representation Distillation", ICLR 2020).

Pre-activations: the sum of a stage's last block before its ReLU.
Initialisation: convolutions normal with variance 2/(k²·out), BN weight 1 and bias 0, the linear layer
PyTorch's default.
"""
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import conv3x3, init_convolutions, projection, run_stages, stage_of

__all__ = ["resnet8", "resnet8x4", "resnet14", "resnet20", "resnet32", "resnet32x4", "resnet44",
           "resnet56", "resnet110"]

# Channels of the stem and of the three stages.
THIN = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: (B, c, h, w) -> (B, c', h/stride, w/stride), no last ReLU."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(width_in, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        reshapes = stride != 1 or width_in != width
        self.downsample = projection(width_in, width, stride) if reshapes else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x)) + shortcut


class ResNet(Classifier):
    """A ResNet of `depth` layers; `widths`: the channels of the stem and of the three stages."""

    def __init__(self, name: str, depth: int, widths: tuple[int, int, int, int], num_classes: int = 100):
        super().__init__(name)
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"a ResNet of basic blocks has 6n+2 layers (8, 14, 20, ...), not {depth}")
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = stage_of(BasicBlock, widths[0], widths[1], blocks, stride=1)
        self.layer2 = stage_of(BasicBlock, widths[1], widths[2], blocks, stride=2)
        self.layer3 = stage_of(BasicBlock, widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions(self)

    def outputs(self, x: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = run_stages(stem, self.layer1, self.layer2, self.layer3)
        return self.finish(stem, stages, preacts, stages[-1])


resnet8 = partial(ResNet, "resnet8", 8, THIN)
resnet14 = partial(ResNet, "resnet14", 14, THIN)
resnet20 = partial(ResNet, "resnet20", 20, THIN)
resnet32 = partial(ResNet, "resnet32", 32, THIN)
resnet44 = partial(ResNet, "resnet44", 44, THIN)
resnet56 = partial(ResNet, "resnet56", 56, THIN)
resnet110 = partial(ResNet, "resnet110", 110, THIN)
resnet8x4 = partial(ResNet, "resnet8x4", 8, WIDE)
resnet32x4 = partial(ResNet, "resnet32x4", 32, WIDE)
