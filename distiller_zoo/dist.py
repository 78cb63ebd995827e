"""Distillation from a stronger teacher.

Huang, You, Wang, Qian and Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.

Settings: the authors' for CIFAR-100 (T 4, both weights 2, cross-entropy 1).
"""
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._logits import log_softmax
from helper.util.arguments import positive_float

__all__ = ["DIST"]

EPSILON = 1e-8


class DIST(nn.Module):
    """The inter-class and the intra-class relation (Huang et al. 2022, section 4).

    Pearson's correlation has 1e-8 added to the product of the norms, as the authors have it: with a constant row or
    column, such as a class that no image of the batch resembles, it is 0.
    """

    def __init__(self, beta: float = 2.0, gamma: float = 2.0, tau: float = 4.0):
        super().__init__()
        self.beta, self.gamma, self.tau = beta, gamma, tau

    def forward(self, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
        """Both (B, C); a scalar."""
        p_s, p_t = (log_softmax(logits, self.tau).exp() for logits in (logits_student, logits_teacher))
        inter, intra = _correlation(p_s, p_t), _correlation(p_s.T, p_t.T)
        return self.tau**2 * (self.beta * (1 - inter.mean()) + self.gamma * (1 - intra.mean()))


def _correlation(a, b):
    """Pearson's, of each row of a with that of b."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPSILON)


class StrongerTeacher(Method):
    name = "dist"
    paper = "Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022"
    formula = "b · T²·[(1 − mean_images ρ(p_s^T, p_t^T)) + (1 − mean_classes ρ(p_s^T, p_t^T))], ρ Pearson's correlation"
    flags = (Flag("--dist_T", 4.0, positive_float, "temperature T of the softened predictions"),)
    reads = frozenset({"logits"})
    whole_batch = True
    beta = 2.0
    in_published_code = False

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.loss = DIST(options.beta, options.beta, options.dist_T)

    def forward(self, student, teacher, batch):
        return self.loss(student.logits, teacher.logits)
