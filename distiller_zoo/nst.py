"""Neuron selectivity transfer.

Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017.
Squared maximum mean discrepancy of the channels' maps under the kernel (x·y)^2, equation 7.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method
from distiller_zoo._layers import check_stages, pool_to_smaller

__all__ = ["NSTLoss"]


class NSTLoss(nn.Module):
    """Per stage: mean K(t, t) + mean K(s, s) - 2 mean K(s, t), K the squared inner product of unit channel maps.

    The inner products of all pairs of channels are one Gram matrix, (B, channels, channels), where
    the published code broadcasts to (B, channels, channels, height * width).
    """

    def forward(self, g_s: list[Tensor], g_t: list[Tensor]) -> list[Tensor]:
        """Lists of (B, channels, height, width), of equal length; a scalar a stage."""
        return [self._discrepancy(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=True)]

    def _discrepancy(self, f_s, f_t):
        s, t = (F.normalize(f.flatten(2), dim=2) for f in pool_to_smaller(f_s, f_t))
        return _kernel(t, t).detach() + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a, b):
    return (a @ b.transpose(1, 2)).square().mean()


class NeuronSelectivity(Method):
    name = "nst"
    paper = "Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017"
    formula = "b · Σ_stages [mean K(t,t) + mean K(s,s) − 2·mean K(s,t)], K = (f̂·f̂′)²"
    reads = frozenset({"stages"})
    beta = 50.0

    def __init__(self, setup, options):
        super().__init__(setup, options)
        check_stages(setup, self.name)
        self.weight, self.loss = options.beta, NSTLoss()

    def forward(self, student, teacher, batch):
        return self.weight * sum(self.loss(student.stages, teacher.stages))
