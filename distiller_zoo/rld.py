"""Refined logit distillation.

Sun, Chen, Lyu, Chen, Chen and Wang, "Knowledge Distillation with Refined Logits", ICCV 2025.
a * SCD + b * MCD. SCD: tau^2 * KL of the binary distributions (confidence, rest), the student's confidence being
its probability of the label, the teacher's its largest one. MCD: T^2 * KL over the classes that the teacher
finds less likely than the label.
"""
import torch
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._logits import kl, log_binary, log_softmax_over
from distiller_zoo.kd import LOGIT_STD, TEMPERATURE, preparation
from helper.util.arguments import positive_float

__all__ = ["RLDLoss"]


class RLDLoss(nn.Module):
    """alpha * SCD at temperature tau + beta * MCD at temperature T (Sun et al. 2025, section 3), batch mean.

    An image of which no class, or a single one, is less likely than the label has an MCD of 0.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, T: float = 4.0, tau: float = 1.0):
        super().__init__()
        self.alpha, self.beta, self.T, self.tau = alpha, beta, T, tau

    def forward(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """logits (B, C), target (B,) int64; a scalar."""
        confident = logits_teacher.argmax(1)
        scd = kl(log_binary(logits_teacher, confident, self.tau), log_binary(logits_student, target, self.tau))
        less_likely = logits_teacher < logits_teacher.gather(1, target[:, None])
        # An image without such a class compares constants.
        s, t = (torch.where(less_likely.any(1, keepdim=True), z.float(), 0.0) for z in (logits_student, logits_teacher))
        keep = less_likely | ~less_likely.any(1, keepdim=True)
        mcd = kl(log_softmax_over(t, keep, self.T), log_softmax_over(s, keep, self.T))
        return (self.alpha * self.tau**2 * scd + self.beta * self.T**2 * mcd).mean()


class RefinedLogits(Method):
    name = "rld"
    paper = "Sun et al., Knowledge Distillation with Refined Logits, ICCV 2025"
    formula = ("a · τ²·KL((max p_t^τ, 1 − max p_t^τ) ‖ (p_s^τ(y), 1 − p_s^τ(y))) "
               "+ b · T²·KL(p_t^T ‖ p_s^T) over the classes with z_t < z_t(y)")
    flags = (TEMPERATURE, Flag("--rld_tau", 1.0, positive_float, "temperature τ of the confidences"), LOGIT_STD)
    reads = frozenset({"logits"})
    alpha, alpha_adds_kd = 1.0, False
    beta = 8.0
    ramp = 20
    in_published_code = False

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.prepare = preparation(setup, options)
        self.loss = RLDLoss(options.alpha, options.beta, options.kd_T, options.rld_tau)

    def forward(self, student, teacher, batch):
        return self.loss(self.prepare(student.logits), self.prepare(teacher.logits), batch.labels)
