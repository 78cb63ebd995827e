"""VGG networks with batch norm and one linear layer, for small images.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
without the hidden linear layers; vgg8 has one convolution per stage (Tian et al., "Contrastive
Representation Distillation", ICLR 2020).

The first of the five blocks is the stem, the other four are the stages; a stage ends before the pooling.
Pre-activations: a stage's last BN, before its ReLU.
Initialisation: convolutions normal with variance 2/(k²·out) and zero bias, BN weight 1 and bias 0, the
linear layer normal(0, 0.01) and zero bias.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from models._base import Classifier, Outputs
from models._layers import init_convolutions, init_small_linear

__all__ = ["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"]

WIDTHS = (64, 128, 256, 512, 512)


class VGG(Classifier):
    """A VGG network; `convs`: how many 3×3 convolutions in each of the five blocks."""

    head_name = "classifier"

    def __init__(self, name: str, convs: tuple[int, int, int, int, int], num_classes: int):
        super().__init__(name)
        self.block0 = _block(3, WIDTHS[0], convs[0])
        self.block1 = _block(WIDTHS[0], WIDTHS[1], convs[1])
        self.block2 = _block(WIDTHS[1], WIDTHS[2], convs[2])
        self.block3 = _block(WIDTHS[2], WIDTHS[3], convs[3])
        self.block4 = _block(WIDTHS[3], WIDTHS[4], convs[4])
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        init_convolutions(self)
        init_small_linear(self.classifier)

    def outputs(self, x: Tensor) -> Outputs:
        # An image of 32 pixels is 4×4 by the last two blocks: only larger ones are halved between them.
        large = x.shape[2] >= 64
        stem = F.relu(self.block0(x))
        preact1 = self.block1(F.max_pool2d(stem, 2))
        stage1 = F.relu(preact1)
        preact2 = self.block2(F.max_pool2d(stage1, 2))
        stage2 = F.relu(preact2)
        preact3 = self.block3(F.max_pool2d(stage2, 2))
        stage3 = F.relu(preact3)
        preact4 = self.block4(F.max_pool2d(stage3, 2) if large else stage3)
        stage4 = F.relu(preact4)
        # Adaptive as published: the other families' published windows round differently.
        pooled = F.adaptive_avg_pool2d(stage4, 1).flatten(1)
        return Outputs(
            logits=self.classifier(pooled),
            pooled=pooled,
            stages=(stage1, stage2, stage3, stage4),
            preacts=(preact1, preact2, preact3, preact4),
            stem=stem,
            last=stage4,
        )


def _block(width_in: int, width: int, convs: int) -> nn.Sequential:
    """`convs` times convolution, BN, ReLU, without the last ReLU."""
    layers = []
    for i in range(convs):
        conv = nn.Conv2d(width_in if i == 0 else width, width, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def vgg8(num_classes: int = 100) -> VGG:
    return VGG("vgg8", (1, 1, 1, 1, 1), num_classes)


def vgg11(num_classes: int = 100) -> VGG:
    return VGG("vgg11", (1, 1, 2, 2, 2), num_classes)


def vgg13(num_classes: int = 100) -> VGG:
    return VGG("vgg13", (2, 2, 2, 2, 2), num_classes)


def vgg16(num_classes: int = 100) -> VGG:
    return VGG("vgg16", (2, 2, 3, 3, 3), num_classes)


def vgg19(num_classes: int = 100) -> VGG:
    return VGG("vgg19", (2, 2, 4, 4, 4), num_classes)
