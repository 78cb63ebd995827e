"""ShuffleNetV2 ×1, for small images (1×1 stem, no pooling).

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018.

Pre-activations: a stage's last map before its ReLU and before its channels are shuffled, as published; the half
that the last block passes through has had its ReLU before.
Initialisation: PyTorch's defaults throughout.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import Stage, conv1x1, conv3x3, run_stages, shuffle_channels

__all__ = ["ShuffleV2"]

STEM = 24
WIDTHS = (116, 232, 464)
BLOCKS = (3, 7, 3)
WIDTH_LAST = 1024


class BasicUnit(nn.Module):
    """Half of the channels pass 1×1, depthwise 3×3, 1×1; (B, c, h, w) -> (B, c, h, w), before ReLU and shuffle.

    The stage's ReLU then covers both halves; the untouched one is non-negative already, so that it and
    its gradient stay as they are.
    """

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))
        return torch.cat([kept, out], dim=1)


class DownUnit(nn.Module):
    """Two branches of stride 2 side by side: (B, c, h, w) -> (B, width, h/2, w/2), before ReLU and shuffle."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = conv3x3(width_in, width_in, stride=2, groups=width_in)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv2 = conv1x1(width_in, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(width_in, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = self.bn2(self.conv2(left))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = self.bn5(self.conv5(right))
        return torch.cat([left, right], dim=1)


class ShuffledStage(Stage):
    """Blocks in a row, each followed by ReLU and the shuffle of both halves' channels."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self:
            preact = block(x)
            x = shuffle_channels(F.relu(preact), 2)
        return x, preact


class ShuffleV2(Classifier):
    """The ShuffleNetV2 of this module's header."""

    head_name = "linear"
    after_stages = ("conv2", "bn2")

    def __init__(self, num_classes: int = 100):
        super().__init__("ShuffleV2")
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, WIDTHS[0], BLOCKS[0])
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], BLOCKS[1])
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], BLOCKS[2])
        self.conv2 = conv1x1(WIDTHS[2], WIDTH_LAST)
        self.bn2 = nn.BatchNorm2d(WIDTH_LAST)
        self.linear = nn.Linear(WIDTH_LAST, num_classes)

    def outputs(self, x: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = run_stages(stem, self.layer1, self.layer2, self.layer3)
        last = F.relu(self.bn2(self.conv2(stages[-1])))
        return self.finish(stem, stages, preacts, last)


def _stage(width_in: int, width: int, blocks: int) -> Stage:
    return ShuffledStage(DownUnit(width_in, width), *(BasicUnit(width) for _ in range(blocks)))
