"""ResNets for small images: three stages of basic blocks, depth 6n+2.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with projection
shortcuts where the shape changes. The "x4" networks are four times as wide in the stages, twice in the stem
(Tian et al., "Contrastive Representation Distillation", ICLR 2020).

Pre-activations: the sum of a stage's last block before its ReLU.
Initialisation: convolutions normal with variance 2/(k²·out), BN weight 1 and bias 0, the linear layer
PyTorch's default.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import Stage, conv3x3, global_average, init_convolutions, projection

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

    head_name = "fc"

    def __init__(self, name: str, depth: int, widths: tuple[int, int, int, int], num_classes: int):
        super().__init__(name)
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"a ResNet of basic blocks has 6n+2 layers (8, 14, 20, ...), not {depth}")
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions(self)

    def outputs(self, x: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(x)))
        stage1, preact1 = self.layer1(stem)
        stage2, preact2 = self.layer2(stage1)
        stage3, preact3 = self.layer3(stage2)
        pooled = global_average(stage3)
        return Outputs(
            logits=self.fc(pooled),
            pooled=pooled,
            stages=(stage1, stage2, stage3),
            preacts=(preact1, preact2, preact3),
            stem=stem,
            last=stage3,
        )


def _stage(width_in: int, width: int, blocks: int, stride: int) -> Stage:
    rest = [BasicBlock(width, width, stride=1) for _ in range(blocks - 1)]
    return Stage(BasicBlock(width_in, width, stride), *rest)


def resnet8(num_classes: int = 100) -> ResNet:
    return ResNet("resnet8", 8, THIN, num_classes)


def resnet14(num_classes: int = 100) -> ResNet:
    return ResNet("resnet14", 14, THIN, num_classes)


def resnet20(num_classes: int = 100) -> ResNet:
    return ResNet("resnet20", 20, THIN, num_classes)


def resnet32(num_classes: int = 100) -> ResNet:
    return ResNet("resnet32", 32, THIN, num_classes)


def resnet44(num_classes: int = 100) -> ResNet:
    return ResNet("resnet44", 44, THIN, num_classes)


def resnet56(num_classes: int = 100) -> ResNet:
    return ResNet("resnet56", 56, THIN, num_classes)


def resnet110(num_classes: int = 100) -> ResNet:
    return ResNet("resnet110", 110, THIN, num_classes)


def resnet8x4(num_classes: int = 100) -> ResNet:
    return ResNet("resnet8x4", 8, WIDE, num_classes)


def resnet32x4(num_classes: int = 100) -> ResNet:
    return ResNet("resnet32x4", 32, WIDE, num_classes)
