"""Factor transfer.

Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
NeurIPS 2018. First a paraphraser, an autoencoder of the teacher's last stage, is trained; then the
student's translator learns to speak the paraphraser's factors, equation 3.
"""
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method, Stage, Term
from distiller_zoo._layers import pool_to_smaller

__all__ = ["FactorTransfer"]

SLOPE = 0.1
SHARE = 0.5  # k: a factor's channels over those of the teacher's map


class FactorTransfer(nn.Module):
    """Mean |difference|^p2 of factors, each the channel mean of f^p1 with unit length."""

    def __init__(self, p1: int = 2, p2: int = 1):
        super().__init__()
        self.p1, self.p2 = p1, p2

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """(B, channels, height, width) each; a scalar."""
        f_s, f_t = pool_to_smaller(f_s, f_t)
        return (self._factor(f_s) - self._factor(f_t)).abs().pow(self.p2).mean()

    def _factor(self, f):
        return F.normalize(f.pow(self.p1).mean(1).flatten(1))


def _convolutions(layer, widths, norm):
    """Three 3×3 convolutions of `layer` between `widths`, each with leaky ReLU and, where asked, batch norm."""
    steps = []
    for width, out in pairwise(widths):
        steps += [layer(width, out, 3, 1, 1), *([nn.BatchNorm2d(out)] if norm else []), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*steps)


class Paraphraser(nn.Module):
    """The autoencoder of the teacher's last stage, without batch norm; its code is the factor."""

    def __init__(self, channels: int):
        super().__init__()
        code = int(channels * SHARE)
        self.encoder = _convolutions(nn.Conv2d, (channels, channels, code, code), norm=False)
        self.decoder = _convolutions(nn.ConvTranspose2d, (code, code, channels, channels), norm=False)

    def forward(self, f: Tensor) -> Tensor:
        """(B, channels, height, width) -> its reconstruction."""
        return self.decoder(self.encoder(f))


class Reconstruction(Term):
    """The first stage's loss: the mean squared error of the paraphraser's reconstruction."""

    reads = frozenset({"stages"})
    reads_student = False

    def __init__(self, paraphraser: Paraphraser):
        super().__init__()
        self.paraphraser = paraphraser

    def forward(self, student, teacher, batch):
        return F.mse_loss(self.paraphraser(teacher.stages[-1]), teacher.stages[-1])


class Factor(Method):
    name = "factor"
    paper = "Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018"
    formula = "first stage: MSE of a paraphraser of the teacher's last stage; then b · mean |factor_s − factor_t|"
    reads = frozenset({"stages"})
    beta = 200.0

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.loss = options.beta, FactorTransfer()
        channels_s, channels_t = (network.stages[-1].shape[1] for network in (setup.student, setup.teacher))
        code = int(channels_t * SHARE)
        self.translator = _convolutions(nn.Conv2d, (channels_s, channels_s, code, code), norm=True)
        self.paraphraser = Paraphraser(channels_t).requires_grad_(False)

    def stage(self, student):
        return Stage("paraphraser", Reconstruction(self.paraphraser), (self.paraphraser,), trains_features=False,
                     learning_rate=_learning_rate)

    def forward(self, student, teacher, batch):
        factor = self.paraphraser.encoder(teacher.stages[-1])
        return self.weight * self.loss(self.translator(student.stages[-1]), factor)


def _learning_rate(student_name, learning_rate):
    """The benchmark's learning rate of the first stage."""
    return 0.01 if student_name.startswith(("resnet", "wrn")) else learning_rate
