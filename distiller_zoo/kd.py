"""Knowledge distillation.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), batch mean.
"""
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._logits import kl, log_softmax
from helper.flags import positive_float

__all__ = ["DistillKL"]

TEMPERATURE = Flag("--kd_T", 4.0, positive_float, "temperature T of the softened distributions")


class DistillKL(nn.Module):
    """T^2 * KL of the softened distributions (Hinton et al. 2015, section 2), batch mean."""

    def __init__(self, T: float):
        super().__init__()
        self.T = T

    def forward(self, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
        """Both (B, C); a scalar."""
        log_p, log_q = log_softmax(logits_teacher, self.T), log_softmax(logits_student, self.T)
        return kl(log_p, log_q).mean() * self.T**2


class KD(Method):
    name = "kd"
    paper = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"
    formula = "a · T²·KL(p_t^T ‖ p_s^T)"
    flags = (TEMPERATURE,)
    reads = frozenset({"logits"})
    alpha, alpha_adds_kd = 0.9, False
    beta = None

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight = options.alpha
        self.active = self.weight != 0
        self.loss = DistillKL(options.kd_T)

    def forward(self, student, teacher, batch):
        return self.weight * self.loss(student.logits, teacher.logits)
