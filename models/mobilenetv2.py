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

# Per group: expansion (1, or the network's), channels at width 1, blocks, stride of the first block.
GROUPS = (
    (False, 16, 1, 1),
    (True, 24, 2, 1),
    (True, 32, 3, 2),
    (True, 64, 4, 2),
    (True, 96, 3, 1),
    (True, 160, 3, 2),
    (True, 320, 1, 1),
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


class MobileNet(Classifier):
    """MobileNetV2 of the given expansion factor and width multiplier."""

    head_name = "classifier"
    after_stages = ("conv2",)

    def __init__(self, name: str, expansion: int, width: float, num_classes: int):
        super().__init__(name)
        channels = int(32 * width)
        self.conv1 = nn.Sequential(conv3x3(3, channels, stride=2), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.ModuleList()
        for expanded, base, blocks, stride in GROUPS:
            group = []
            for i in range(blocks):
                block_stride = stride if i == 0 else 1
                group.append(
                    InvertedResidual(channels, int(base * width), block_stride, expansion if expanded else 1)
                )
                channels = int(base * width)
            self.blocks.append(nn.Sequential(*group))
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


def MobileNetV2(num_classes: int = 100) -> MobileNet:
    return MobileNet("MobileNetV2", expansion=6, width=0.5, num_classes=num_classes)
