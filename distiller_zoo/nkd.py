"""Normalised knowledge distillation.

Yang, Zeng, Zheng, Liu, Yuan and Li, "From Knowledge Distillation to Self-Knowledge Distillation:
A Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023.
"""
from torch import Tensor, nn

from distiller_zoo._base import Method
from distiller_zoo._logits import log_softmax, log_softmax_without
from distiller_zoo.kd import LOGIT_STD, TEMPERATURE, preparation

__all__ = ["NKDLoss"]


class NKDLoss(nn.Module):
    """The normalised loss (Yang et al. 2023, equation 7); p^ are renormalised over the classes but the label."""

    def __init__(self, temp: float = 1.0, gamma: float = 1.5):
        super().__init__()
        self.temp, self.gamma = temp, gamma

    def forward(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """logits (B, C), target (B,) int64; a scalar."""
        label = target[:, None]
        on_label = log_softmax(logits_teacher).gather(1, label).exp() * log_softmax(logits_student).gather(1, label)
        log_p = log_softmax_without(logits_teacher, target, self.temp)
        log_q = log_softmax_without(logits_student, target, self.temp)
        others = (log_p.exp() * log_q).sum(1)
        return -on_label.mean() - self.gamma * self.temp**2 * others.mean()


class NormalisedKD(Method):
    name = "nkd"
    paper = "Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023"
    formula = "−mean p_t(y)·log p_s(y) − b·T²·mean Σ_{k≠y} p̂_t^T(k)·log p̂_s^T(k)"
    flags = (TEMPERATURE, LOGIT_STD)
    reads = frozenset({"logits"})
    alpha = None
    beta = 1.5

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.active = True
        self.prepare, self.loss = preparation(setup, options), NKDLoss(options.kd_T, options.beta)

    def forward(self, student, teacher, batch):
        return self.loss(self.prepare(student.logits), self.prepare(teacher.logits), batch.labels)
