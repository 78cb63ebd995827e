"""Probabilistic knowledge transfer.

Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018.
mean P_t log(P_t / P_s), P the row-normalised cosine kernel, equations 4 and 7.
"""
from torch import Tensor, nn

from distiller_zoo._base import Method

__all__ = ["PKT"]

EPSILON = 1e-7


class PKT(nn.Module):
    """The divergence of the batch's neighbour distributions in teacher and student."""

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """(B, width) each; a scalar."""
        p_s, p_t = _neighbours(f_s), _neighbours(f_t)
        return (p_t * ((p_t + EPSILON) / (p_s + EPSILON)).log()).mean()


def _neighbours(f):
    """(B, B): (cosine + 1) / 2, each row summing to 1."""
    f = f / (f.norm(dim=1, keepdim=True) + EPSILON)
    kernel = (f @ f.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


class Probabilistic(Method):
    name = "pkt"
    paper = "Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018"
    formula = "b · mean P_t·log((P_t+ε)/(P_s+ε)), P = rownorm((cos+1)/2), pooled"
    reads = frozenset({"pooled"})
    whole_batch = True
    beta = 30000.0

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.loss = options.beta, PKT()

    def forward(self, student, teacher, batch):
        return self.weight * self.loss(student.pooled, teacher.pooled)
