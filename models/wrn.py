"""Wide residual networks, wrn_DEPTH_WIDTH: three groups of pre-activation blocks, depth 6n+4.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, without dropout.

In this family BN and ReLU come first in a block, so that a stage's map is a sum without BN or ReLU, and the stem a
convolution alone. Pre-activations: that sum after the BN that reads it next (the
first of the following group, or the last BN of the network).
Initialisation: convolutions normal with variance 2/(k²·out), BN weight 1 and bias 0, the linear layer
PyTorch's default weight and zero bias.
"""
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import conv1x1, conv3x3, init_convolutions

__all__ = ["wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"]


class PreActBlock(nn.Module):
    """BN, ReLU, 3×3 convolution, twice, beside a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = conv3x3(width_in, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.convShortcut = conv1x1(width_in, width, stride) if width_in != width else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, h, w) -> the sum (B, c', h/stride, w/stride), and the input after its BN (B, c, h, w)."""
        normed = self.bn1(x)
        active = F.relu(normed)
        # A projection reads the activated input, an identity the raw one.
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + shortcut, normed


class Group(nn.Module):
    """The blocks of one stage."""

    def __init__(self, width_in: int, width: int, blocks: int, stride: int):
        super().__init__()
        rest = [PreActBlock(width, width, stride=1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(PreActBlock(width_in, width, stride), *rest)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As PreActBlock.forward: the stage's map, and the group's input after its first BN."""
        first, *rest = self.layer
        x, normed = first(x)
        for block in rest:
            x, _ = block(x)
        return x, normed


class WideResNet(Classifier):
    """A wide ResNet of `depth` layers, `widen` times the channels 16, 32, 64 in its groups."""

    after_stages = ("bn1",)

    def __init__(self, name: str, depth: int, widen: int, num_classes: int = 100):
        super().__init__(name)
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a wide ResNet has 6n+4 layers (10, 16, 22, ...), not {depth}")
        self.conv1 = conv3x3(3, 16)
        self.block1 = Group(16, 16 * widen, blocks, stride=1)
        self.block2 = Group(16 * widen, 32 * widen, blocks, stride=2)
        self.block3 = Group(32 * widen, 64 * widen, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def outputs(self, x: Tensor) -> Outputs:
        stem = self.conv1(x)
        stage1, _ = self.block1(stem)
        stage2, preact1 = self.block2(stage1)
        stage3, preact2 = self.block3(stage2)
        preact3 = self.bn1(stage3)
        return self.finish(stem, (stage1, stage2, stage3), (preact1, preact2, preact3), F.relu(preact3))


wrn_16_1 = partial(WideResNet, "wrn_16_1", 16, 1)
wrn_16_2 = partial(WideResNet, "wrn_16_2", 16, 2)
wrn_40_1 = partial(WideResNet, "wrn_40_1", 40, 1)
wrn_40_2 = partial(WideResNet, "wrn_40_2", 40, 2)
