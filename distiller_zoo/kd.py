"""Knowledge distillation.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
"""
from argparse import Namespace
from collections.abc import Callable

from torch import Tensor, nn

from distiller_zoo._base import Flag, Method, MethodError, Setup
from distiller_zoo._logits import kl, log_softmax, standardise
from helper.util.arguments import positive_float

__all__ = ["DistillKL"]

TEMPERATURE = Flag("--kd_T", 4.0, positive_float, "temperature T of the softened distributions")
# Sun, Ren, Li, Wang and Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, algorithm 1.
LOGIT_STD = Flag("--logit_std", "off", str, "on: each image's logits are standardised before the temperature "
                 "(Sun et al., CVPR 2024, who give kd -r 0.1 -a 9 --kd_T 2 with it)", ("off", "on"))

SECOND_VIEW = Flag("--second_view", "off", str, "on: each image is also shown in a strongly augmented view, on which "
                   "the KD loss and the cross-entropy are added", ("off", "on"))


def preparation(setup: Setup, options: Namespace) -> Callable[[Tensor], Tensor]:
    """What `--logit_std` has done to both networks' logits, (B, C), before the loss.

    Raises MethodError for 2 classes, of whose logits nothing but the order is left, and no gradient.
    """
    if options.logit_std == "off":
        return nn.Identity()
    if setup.num_classes == 2:
        raise MethodError("--logit_std on: the standardised logits of 2 classes have no gradient: leave it out")
    return standardise


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
    flags = (TEMPERATURE, LOGIT_STD, SECOND_VIEW)
    reads = frozenset({"logits"})
    alpha, alpha_adds_kd = 0.9, False
    beta = None

    def __init__(self, setup, options):
        super().__init__(setup, options)
        if options.second_view == "on":
            self.reads = self.reads | {"strong"}
        self.weight = options.alpha
        self.prepare, self.loss = preparation(setup, options), DistillKL(options.kd_T)

    def forward(self, student, teacher, batch):
        loss = self.loss(self.prepare(student.logits), self.prepare(teacher.logits))
        if "strong" in self.reads:
            loss = loss + self.loss(self.prepare(student.strong), self.prepare(teacher.strong))
        return self.weight * loss
