"""VGG networks with batch norm and one linear layer, for small images.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
without the hidden linear layers; vgg8 has one convolution per stage (Tian et al., "Contrastive
Representation Distillation", ICLR 2020).

The first of the five blocks is the stem, the other four are the stages; a stage ends before the pooling.
Pre-activations: a stage's last BN, before its ReLU.
Initialisation: convolutions normal with variance 2/(k²·out) and zero bias, BN weight 1 and bias 0, the
linear layer normal(0, 0.01) and zero bias.
"""
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import init_convolutions, init_small_linear

__all__ = ["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"]

WIDTHS = (64, 128, 256, 512, 512)


class VGG(Classifier):
    """A VGG network; `convs`: how many 3×3 convolutions in each of the five blocks."""

    head_name = "classifier"

    def __init__(self, name: str, convs: tuple[int, int, int, int, int], num_classes: int = 100):
        super().__init__(name)
        self.block0 = _block(3, WIDTHS[0], convs[0])
        self.block1 = _block(WIDTHS[0], WIDTHS[1], convs[1])
        self.block2 = _block(WIDTHS[1], WIDTHS[2], convs[2])
        self.block3 = _block(WIDTHS[2], WIDTHS[3], convs[3])
        self.block4 = _block(WIDTHS[3], WIDTHS[4], convs[4])
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        init_convolutions(self)
        init_small_linear(self.classifier)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        # Adaptive as published: the other families' published windows round differently.
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def outputs(self, x: Tensor) -> Outputs:
        # An image of 32 pixels is 4×4 by the last two blocks: only larger ones are halved between them.
        large = x.shape[2] >= 64
        x = stem = F.relu(self.block0(x))
        stages, preacts = [], []
        for block in (self.block1, self.block2, self.block3, self.block4):
            preacts.append(block(F.max_pool2d(x, 2) if large or block is not self.block4 else x))
            x = F.relu(preacts[-1])
            stages.append(x)
        return self.finish(stem, stages, preacts, x)


def _block(width_in: int, width: int, convs: int) -> nn.Sequential:
    """`convs` times convolution, BN, ReLU, without the last ReLU."""
    layers = []
    for i in range(convs):
        conv = nn.Conv2d(width_in if i == 0 else width, width, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


vgg8 = partial(VGG, "vgg8", (1, 1, 1, 1, 1))
vgg11 = partial(VGG, "vgg11", (1, 1, 2, 2, 2))
vgg13 = partial(VGG, "vgg13", (2, 2, 2, 2, 2))
vgg16 = partial(VGG, "vgg16", (2, 2, 3, 3, 3))
vgg19 = partial(VGG, "vgg19", (2, 2, 4, 4, 4))
