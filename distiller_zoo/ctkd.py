"""Curriculum temperature for knowledge distillation.

Li, Li, Yang, Zhao, Song, Luo, Li and Yang, "Curriculum Temperature for Knowledge Distillation", AAAI 2023.
T^2 * KL of the softened distributions, batch mean, at one learned temperature for all images, the "global"
one: T = start + span * sigmoid(theta). Theta is trained with the student, but up the loss, not down: its
gradient is reversed, and grows with the epochs, so that the student meets harder temperatures little by little.
"""
import math

import torch
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._logits import kl, log_softmax
from helper.util.arguments import positive_float, positive_int

__all__ = ["CTKDLoss"]


class Reverse(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -strength; both scalar tensors."""

    @staticmethod
    def forward(ctx, x, strength):
        ctx.save_for_backward(strength)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -ctx.saved_tensors[0] * grad, None


class CTKDLoss(nn.Module):
    """KD at a learned temperature (Li et al. 2023, section 3).

    T lies between start and start + span; theta starts at 1, as published.
    """

    strength: Tensor

    def __init__(self, start: float = 1.0, span: float = 20.0):
        super().__init__()
        self.start, self.span = start, span
        self.theta = nn.Parameter(torch.tensor(1.0))
        # How much of theta's gradient acts: a tensor, so that it can change beneath a captured step.
        self.register_buffer("strength", torch.tensor(0.0))

    def temperature(self) -> Tensor:
        """T, a scalar."""
        return self.start + self.span * Reverse.apply(self.theta, self.strength).sigmoid()

    def forward(self, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
        """Both (B, C); a scalar."""
        T = self.temperature()
        return kl(log_softmax(logits_teacher, T), log_softmax(logits_student, T)).mean() * T**2


def strength_of(epoch: int, epochs: int) -> float:
    """The curriculum: from 0 to 1 along half a cosine over `epochs`, then 1."""
    return (1 - math.cos(math.pi * min(epoch, epochs) / epochs)) / 2


class CurriculumTemperature(Method):
    name = "ctkd"
    paper = "Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023"
    formula = "a · T²·KL(p_t^T ‖ p_s^T), T = T_start + T_range·σ(θ), θ trained on −λ(epoch) times its gradient"
    flags = (
        Flag("--ctkd_start", 1.0, positive_float, "the lowest temperature"),
        Flag("--ctkd_range", 20.0, positive_float, "how far above it the learned temperature may lie"),
        Flag("--ctkd_epochs", 10, positive_int, "epochs over which λ rises from 0 to 1, along half a cosine"),
    )
    reads = frozenset({"logits"})
    alpha, alpha_adds_kd = 0.9, False
    beta = None
    in_published_code = False

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.epochs = options.alpha, options.ctkd_epochs
        self.loss = CTKDLoss(options.ctkd_start, options.ctkd_range)

    def start_epoch(self, epoch, generator):
        self.loss.strength.fill_(strength_of(epoch, self.epochs))

    def forward(self, student, teacher, batch):
        return self.weight * self.loss(student.logits, teacher.logits)
