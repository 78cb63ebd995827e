"""MobileNetV2 with half its channels, for small images.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, with expansion 6 and
width 0.5 but the full 1280 channels before the classifier; the second group keeps its stride at 1.

The stages are the groups of blocks after which the map's size changes or the blocks end. Bottlenecks are
linear: no ReLU ends a stage, so the pre-activations are the stages themselves.
Initialisation: convolutions normal with variance 2/(k²·out), BN weight 1 and bias 0, the linear layer
normal(0, 0.01) and zero bias.
"""
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import conv1x1, conv3x3, init_convolutions, init_small_linear

__all__ = ["MobileNetV2"]

WIDTH = 0.5
# Per group: expansion, channels at width 1, blocks, stride of the first block.
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# The groups whose results are stages.
STAGE_ENDS = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """1×1 to more channels, depthwise 3×3, linear 1×1: (B, c, h, w) -> (B, c', h/stride, w/stride)."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int):
        super().__init__()
        hidden = expansion * width_in
        self.residual = stride == 1 and width_in == width
        self.conv = nn.Sequential(
            conv1x1(width_in, hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv3x3(hidden, hidden, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv1x1(hidden, width),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Classifier):
    """The MobileNetV2 of this module's header."""

    head_name = "classifier"
    after_stages = ("conv2",)

    def __init__(self, num_classes: int = 100):
        super().__init__("MobileNetV2")
        channels = int(32 * WIDTH)
        self.conv1 = nn.Sequential(conv3x3(3, channels, stride=2), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.ModuleList()
        for expansion, base, blocks, stride in GROUPS:
            width = int(base * WIDTH)
            rest = [InvertedResidual(width, width, 1, expansion) for _ in range(blocks - 1)]
            self.blocks.append(nn.Sequential(InvertedResidual(channels, width, stride, expansion), *rest))
            channels = width
        self.conv2 = nn.Sequential(conv1x1(channels, 1280), nn.BatchNorm2d(1280), nn.ReLU())
        linear = nn.Linear(1280, num_classes)
        self.classifier = nn.Sequential(linear)
        init_convolutions(self)
        init_small_linear(linear)

    def outputs(self, x: Tensor) -> Outputs:
        x = stem = self.conv1(x)
        stages = []
        for i, group in enumerate(self.blocks):
            x = group(x)
            if i in STAGE_ENDS:
                stages.append(x)
        return self.finish(stem, stages, stages, self.conv2(x))
