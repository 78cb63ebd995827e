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
from models._layers import Stage, conv1x1, conv3x3, init_convolutions, projection, run_stages

__all__ = ["ResNet50"]

EXPANSION = 4


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 beside a shortcut: (B, c, h, w) -> (B, 4·width, h/stride, w/stride), before the ReLU."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        width_out = EXPANSION * width
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


class BottleneckResNet(Classifier):
    """A ResNet of bottleneck blocks; `blocks`: how many in each of the four stages."""

    head_name = "linear"

    def __init__(self, name: str, blocks: tuple[int, int, int, int], num_classes: int):
        super().__init__(name)
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks[0], stride=1)
        self.layer2 = _stage(64 * EXPANSION, 128, blocks[1], stride=2)
        self.layer3 = _stage(128 * EXPANSION, 256, blocks[2], stride=2)
        self.layer4 = _stage(256 * EXPANSION, 512, blocks[3], stride=2)
        self.linear = nn.Linear(512 * EXPANSION, num_classes)
        init_convolutions(self)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        # Adaptive as published: the other families' published windows round differently.
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def outputs(self, x: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = run_stages(stem, self.layer1, self.layer2, self.layer3, self.layer4)
        return self.finish(stem, stages, preacts, stages[-1])


def _stage(width_in: int, width: int, blocks: int, stride: int) -> Stage:
    rest = [Bottleneck(EXPANSION * width, width, stride=1) for _ in range(blocks - 1)]
    return Stage(Bottleneck(width_in, width, stride), *rest)


def ResNet50(num_classes: int = 100) -> BottleneckResNet:
    return BottleneckResNet("ResNet50", (3, 4, 6, 3), num_classes)
