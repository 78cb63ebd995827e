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
from models._layers import conv1x1, conv3x3, run_stages, shuffle_channels, stage_of

__all__ = ["ShuffleV1"]

STEM = 24
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


class ShuffleV1(Classifier):
    """The ShuffleNet of this module's header."""

    head_name = "linear"

    def __init__(self, num_classes: int = 100):
        super().__init__("ShuffleV1")
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = stage_of(ShuffleUnit, STEM, 240, blocks=4, stride=2)
        self.layer2 = stage_of(ShuffleUnit, 240, 480, blocks=8, stride=2)
        self.layer3 = stage_of(ShuffleUnit, 480, 960, blocks=4, stride=2)
        self.linear = nn.Linear(960, num_classes)

    def outputs(self, x: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = run_stages(stem, self.layer1, self.layer2, self.layer3)
        return self.finish(stem, stages, preacts, stages[-1])
