"""Similarity-preserving distillation.

Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
Squared Frobenius distance of the row-normalised B×B similarities, over B^2, equation 4.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method

__all__ = ["Similarity"]


class Similarity(nn.Module):
    """How the samples of a batch resemble each other, in the student and in the teacher."""

    def forward(self, g_s: list[Tensor], g_t: list[Tensor]) -> list[Tensor]:
        """Lists of (B, ...), of equal length; a scalar a pair."""
        return [(_similarity(f_s) - _similarity(f_t)).square().mean() for f_s, f_t in zip(g_s, g_t, strict=True)]


def _similarity(f):
    f = f.flatten(1)
    return F.normalize(f @ f.T)


class SimilarityPreserving(Method):
    name = "similarity"
    paper = "Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019"
    formula = "b · ‖rownorm(F_t F_tᵀ) − rownorm(F_s F_sᵀ)‖_F² / B², last stage"
    reads = frozenset({"stages"})
    whole_batch = True
    beta = 3000.0

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.loss = options.beta, Similarity()

    def forward(self, student, teacher, batch):
        return self.weight * sum(self.loss(student.stages[-1:], teacher.stages[-1:]))
