"""Attention transfer.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017.
Sum over stages of the mean squared difference of normalised attention maps, equation 2.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method
from distiller_zoo._layers import check_stages, pool_to_smaller

__all__ = ["Attention"]


class Attention(nn.Module):
    """Differences of attention maps, mean over channels of |f|^p at each place, of unit length."""

    def __init__(self, p: int = 2):
        super().__init__()
        self.p = p

    def forward(self, g_s: list[Tensor], g_t: list[Tensor]) -> list[Tensor]:
        """Lists of (B, channels, height, width), of equal length; a scalar a stage."""
        return [self._difference(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=True)]

    def _difference(self, f_s, f_t):
        f_s, f_t = pool_to_smaller(f_s, f_t)
        return (self._map(f_s) - self._map(f_t)).square().mean()

    def _map(self, f):
        return F.normalize(f.pow(self.p).mean(1).flatten(1))


class AttentionTransfer(Method):
    name = "attention"
    paper = "Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017"
    formula = "b · Σ_stages mean (norm(mean_c f_s²) − norm(mean_c f_t²))²"
    reads = frozenset({"stages"})
    beta = 1000.0

    def __init__(self, setup, options):
        super().__init__(setup, options)
        check_stages(setup, self.name)
        self.weight, self.loss = options.beta, Attention()

    def forward(self, student, teacher, batch):
        return self.weight * sum(self.loss(student.stages, teacher.stages))
