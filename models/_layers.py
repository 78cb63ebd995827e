"""What two or more families share: layers, pooling, initialisation.

ReLUs are never in place: a map before its ReLU may be one of the outputs.
"""
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(width_in: int, width_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3×3 convolution without bias that keeps the map's size (at stride 1)."""
    return nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(width_in: int, width_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1×1 convolution without bias."""
    return nn.Conv2d(width_in, width_out, 1, stride=stride, groups=groups, bias=False)


def projection(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    """The shortcut of a residual block whose input and output differ in shape: 1×1 convolution and BN."""
    return nn.Sequential(conv1x1(width_in, width_out, stride), nn.BatchNorm2d(width_out))


class Stage(nn.Sequential):
    """Blocks in a row that return their map before its ReLU, each followed by that ReLU.

    Leaving the last ReLU of a block to its stage is what makes the pre-activation an ordinary
    value of the forward pass instead of a second result of every block.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, h, w) -> the stage's map and the same map before the last ReLU, each (B, c', h', w')."""
        for block in self:
            preact = block(x)
            x = F.relu(preact)
        return x, preact


def stage_of(block: Callable[[int, int, int], nn.Module], width_in: int, width: int, blocks: int, stride: int) -> Stage:
    """So many blocks, block(channels in, channels out, stride), of which the first has the stride."""
    rest = [block(width, width, 1) for _ in range(blocks - 1)]  # made first: a seed's weights depend on the order
    return Stage(block(width_in, width, stride), *rest)


def run_stages(x: Tensor, *stages: Stage) -> tuple[list[Tensor], list[Tensor]]:
    """The maps of the stages, one after the other, and the same maps before their last ReLU."""
    maps, preacts = [], []
    for stage in stages:
        x, preact = stage(x)
        maps.append(x)
        preacts.append(preact)
    return maps, preacts


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """(B, c, h, w) -> the same shape, with the channels of the groups dealt out in turn."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def init_convolutions(network: nn.Module) -> None:
    """Draw every convolution from a normal distribution of variance 2/(k²·out channels); its bias is zero.

    He et al., "Delving Deep into Rectifiers", ICCV 2015, in the fan-out form. Batch norms keep
    PyTorch's weight 1 and bias 0.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_small_linear(layer: nn.Linear) -> None:
    """Draw a linear layer from normal(0, 0.01), with zero bias."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
