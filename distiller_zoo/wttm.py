"""Weighted transformed teacher matching.

Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024.
"""
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method, MethodError
from distiller_zoo._logits import kl, log_softmax
from helper.util.arguments import nonnegative_float, positive_float

__all__ = ["WTTMLoss"]


class WTTMLoss(nn.Module):
    """The weighted loss (Zheng and Yang 2024, equation 14); the student's temperature is 1."""

    def forward(self, logits_student: Tensor, logits_teacher: Tensor, gamma: float, beta: float) -> Tensor:
        """logits (B, C), gamma the power of the teacher's distribution; a scalar."""
        log_power = gamma * log_softmax(logits_teacher)
        weight = log_power.logsumexp(1)
        return beta * (weight.exp() * kl(log_power - weight[:, None], log_softmax(logits_student))).mean()


class WTTM(Method):
    name = "wttm"
    paper = "Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024"
    formula = "b · mean n_i·KL(q_i/n_i ‖ p_s,i), q = p_t^a, n = Σ q"
    flags = (
        Flag("--wttm_gamma", 0.3, positive_float, "power of the teacher's distribution, where -a is not given"),
        Flag("--wttm_beta", 1.5, nonnegative_float, "weight of the loss, where -b is not given"),
    )
    reads = frozenset({"logits"})
    alpha, alpha_adds_kd = 0.3, False
    beta = 1.5

    @classmethod
    def resolve(cls, options):
        for weight, flag in (("alpha", "wttm_gamma"), ("beta", "wttm_beta")):
            if getattr(options, weight) is None:
                setattr(options, weight, getattr(options, flag))
        if options.alpha == 0:
            raise MethodError("wttm: -a is the power of the teacher's distribution: give a number above 0, such as 0.3")
        super().resolve(options)

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.power, self.weight, self.active = options.alpha, options.beta, options.beta != 0
        self.loss = WTTMLoss()

    def forward(self, student, teacher, batch):
        return self.loss(student.logits, teacher.logits, self.power, self.weight)
