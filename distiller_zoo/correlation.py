"""Correlation congruence.

Peng, Jin, Liu, Li, Wu, Liu, Zhou and Zhang, "Correlation Congruence for Knowledge Distillation",
ICCV 2019; in the benchmark's form: products of the embeddings' differences of neighbours in the batch.
"""
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._layers import Embed
from helper.util.arguments import positive_int

__all__ = ["Correlation"]

FEAT_DIM = Flag("--feat_dim", 128, positive_int, "size of the embeddings")


class Correlation(nn.Module):
    """Mean over neighbours i, i+1 of the sum of Δ_i Δ_{i+1}, Δ = |f_s - f_t|."""

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """(B, width) each, of one width; a scalar, 0 for a batch of one."""
        delta = (f_s - f_t).abs()
        return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


class CorrelationCongruence(Method):
    name = "correlation"
    paper = "Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019"
    formula = "b · mean Σ_d Δ_i·Δ_{i+1}, Δ = |e_s − e_t|, linear embeddings of pooled"
    flags = (FEAT_DIM,)
    reads = frozenset({"pooled"})
    whole_batch = True
    beta = 0.02

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.loss = options.beta, Correlation()
        self.embed_s = Embed(setup.student.pooled.shape[1], options.feat_dim)
        self.embed_t = Embed(setup.teacher.pooled.shape[1], options.feat_dim)

    def forward(self, student, teacher, batch):
        return self.weight * self.loss(self.embed_s(student.pooled), self.embed_t(teacher.pooled))
