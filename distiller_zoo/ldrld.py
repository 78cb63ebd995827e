"""Local dense relational logit distillation.

Xu, Liu, Liu, Wang, Xu and Cheng, "Local Dense Logit Relations for Enhanced Knowledge Distillation", ICCV 2025.
a * L + b * R over the student's k most likely classes: L compares all pairs of them, and all k together, R
compares the other classes.
"""
import torch
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method, MethodError
from distiller_zoo._logits import kl, log_softmax, log_softmax_over
from distiller_zoo.kd import TEMPERATURE
from helper.util.arguments import positive_int

__all__ = ["LDRLDLoss"]


class LDRLDLoss(nn.Module):
    """alpha * L + beta * R (Xu et al. 2025, section 3).

    The pair of ranks i < j weighs 2 exp(-0.05 (i + j)) / (1.5 + j - i), all k classes together 1; L is the sum over
    their number, k (k - 1) / 2 + 1.
    """

    first: Tensor
    second: Tensor
    weights: Tensor

    def __init__(self, alpha: float = 10.5, beta: float = 7.0, T: float = 4.0, k: int = 7):
        super().__init__()
        self.alpha, self.beta, self.T, self.k = alpha, beta, T, k
        i, j = torch.triu_indices(k, k, 1)
        # The published ranks begin at 1.
        weights = 2 * torch.exp(-0.05 * (i + j + 2)) / (1.5 + j - i)
        for name, values in (("first", i), ("second", j), ("weights", weights)):
            self.register_buffer(name, values, persistent=False)

    def forward(self, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
        """Both (B, C) with C > k; a scalar."""
        top = logits_student.detach().topk(self.k, dim=1).indices
        s, t = (z.float().gather(1, top) for z in (logits_student, logits_teacher))
        pairs_s, pairs_t = (torch.stack([z[:, self.first], z[:, self.second]], dim=2) for z in (s, t))
        local = (self.weights * self._kd(pairs_s, pairs_t)).sum(1) + self._kd(s, t)
        rest = torch.ones_like(logits_student, dtype=torch.bool).scatter(1, top, False)
        others = kl(log_softmax_over(logits_teacher, rest, self.T), log_softmax_over(logits_student, rest, self.T))
        return (self.alpha * local / (len(self.weights) + 1) + self.beta * self.T**2 * others).mean()

    def _kd(self, s, t):
        return kl(log_softmax(t, self.T), log_softmax(s, self.T)) * self.T**2


class LocalRelations(Method):
    name = "ldrld"
    paper = "Xu et al., Local Dense Logit Relations for Enhanced Knowledge Distillation, ICCV 2025"
    formula = ("a · mean of w_ij·T²·KL over each pair i<j of the student's k largest classes, and of T²·KL over all k, "
               "+ b · T²·KL over the other classes")
    flags = (TEMPERATURE, Flag("--ldrld_k", 7, positive_int, "the student's k largest classes"))
    reads = frozenset({"logits"})
    alpha, alpha_adds_kd = 10.5, False
    beta = 7.0
    in_published_code = False

    def __init__(self, setup, options):
        super().__init__(setup, options)
        if not 2 <= options.ldrld_k < setup.num_classes:
            raise MethodError(f"--ldrld_k {options.ldrld_k}: of {setup.num_classes} classes, give 2 to "
                              f"{setup.num_classes - 1}")
        self.loss = LDRLDLoss(options.alpha, options.beta, options.kd_T, options.ldrld_k)

    def forward(self, student, teacher, batch):
        return self.loss(student.logits, teacher.logits)
