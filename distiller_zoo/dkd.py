"""Decoupled knowledge distillation.

Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", CVPR 2022.
"""
from torch import Tensor, nn

from distiller_zoo._base import Method
from distiller_zoo._logits import kl, log_binary, log_softmax_without
from distiller_zoo.kd import LOGIT_STD, TEMPERATURE, preparation

__all__ = ["DKD"]


class DKD(nn.Module):
    """T^2 * (alpha * TCKD + beta * NCKD) (Zhao et al. 2022, equation 7), batch mean.

    TCKD is the KL between the binary distributions (label, all others), NCKD the KL between the
    distributions over the classes other than the label. Both are computed in log space, so that
    the loss is finite for any finite logits, in float32 and bfloat16, and for 2 classes.
    """

    def forward(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor,
                alpha: float, beta: float, temperature: float) -> Tensor:
        """logits (B, C), target (B,) int64; a scalar."""
        return dkd_of_rows(logits_student, logits_teacher, target, alpha, beta, temperature).mean()


def dkd_of_rows(logits_student, logits_teacher, target, alpha, beta, temperature) -> Tensor:
    """The loss of each row, (B,)."""
    tckd = kl(log_binary(logits_teacher, target, temperature), log_binary(logits_student, target, temperature))
    nckd = kl(log_softmax_without(logits_teacher, target, temperature),
              log_softmax_without(logits_student, target, temperature))
    return (alpha * tckd + beta * nckd) * temperature**2


class DecoupledKD(Method):
    name = "dkd"
    paper = "Zhao et al., Decoupled Knowledge Distillation, CVPR 2022"
    formula = "T²·(a·TCKD + b·NCKD)"
    flags = (TEMPERATURE, LOGIT_STD)
    reads = frozenset({"logits"})
    alpha, alpha_adds_kd = 1.0, False
    beta = 8.0

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.tckd, self.nckd, self.temperature = options.alpha, options.beta, options.kd_T
        self.prepare, self.loss = preparation(setup, options), DKD()

    def forward(self, student, teacher, batch):
        return self.loss(self.prepare(student.logits), self.prepare(teacher.logits), batch.labels,
                         self.tckd, self.nckd, self.temperature)
