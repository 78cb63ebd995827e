"""ShuffleNet with three groups and 240, 480, 960 channels, for small images (1×1 stem, no pooling).

Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
CVPR 2018; here a ReLU follows the depthwise convolution too.

Pre-activations: the sum or concatenation of a stage's last block before its ReLU.
Initialisation: PyTorch's defaults throughout.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import Stage, conv1x1, conv3x3, run_stages, shuffle_channels

__all__ = ["ShuffleV1"]

STEM = 24
WIDTHS = (240, 480, 960)
BLOCKS = (4, 8, 4)
GROUPS = 3


class ShuffleUnit(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1 beside a shortcut, before the ReLU.

    (B, c, h, w) -> (B, width, h, w) with the input added, or, at stride 2, (B, width, h/2, w/2) with the
    pooled input as its last c channels.
    """

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        # The stem has too few channels to be worth grouping (section 3.2 of the paper).
        self.groups = 1 if width_in == STEM else GROUPS
        width_branch = width - width_in if stride == 2 else width
        hidden = width_branch // 4
        self.conv1 = conv1x1(width_in, hidden, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv3x3(hidden, hidden, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, width_branch, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(width_branch)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = shuffle_channels(out, self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        return out + x


class ShuffleNet(Classifier):
    """The ShuffleNet of this module's header."""

    head_name = "linear"

    def __init__(self, name: str, num_classes: int):
        super().__init__(name)
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, WIDTHS[0], BLOCKS[0])
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], BLOCKS[1])
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], BLOCKS[2])
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    def outputs(self, x: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = run_stages(stem, self.layer1, self.layer2, self.layer3)
        return self.finish(stem, stages, preacts, stages[-1])


def _stage(width_in: int, width: int, blocks: int) -> Stage:
    rest = [ShuffleUnit(width, width, stride=1) for _ in range(blocks - 1)]
    return Stage(ShuffleUnit(width_in, width, stride=2), *rest)


def ShuffleV1(num_classes: int = 100) -> ShuffleNet:
    return ShuffleNet("ShuffleV1", num_classes)
