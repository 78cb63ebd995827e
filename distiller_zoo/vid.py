"""Variational information distillation.

Ahn, Hu, Damianou, Lawrence and Dai, "Variational Information Distillation for Knowledge Transfer",
CVPR 2019. A Gaussian's negative log-likelihood of the teacher's features, equations 5 and 6.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method
from distiller_zoo._layers import check_stages, pool_to_smaller

__all__ = ["VIDLoss"]


class VIDLoss(nn.Module):
    """mean ½ ((μ(f_s) - f_t)² / σ² + log σ²): μ three 1×1 convolutions, σ² = softplus(ρ) + eps a channel."""

    def __init__(self, num_input_channels: int, num_mid_channel: int, num_target_channels: int,
                 init_pred_var: float = 5.0, eps: float = 1e-5):
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(num_input_channels, num_mid_channel, 1, bias=False), nn.ReLU(),
            nn.Conv2d(num_mid_channel, num_mid_channel, 1, bias=False), nn.ReLU(),
            nn.Conv2d(num_mid_channel, num_target_channels, 1, bias=False))
        self.log_scale = nn.Parameter(torch.full((num_target_channels,), math.log(math.expm1(init_pred_var - eps))))
        self.eps = eps

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """(B, channels, height, width) each; a scalar."""
        f_s, f_t = pool_to_smaller(f_s, f_t)
        variance = F.softplus(self.log_scale).view(1, -1, 1, 1) + self.eps
        return 0.5 * ((self.regressor(f_s) - f_t).square() / variance + variance.log()).mean()


class Variational(Method):
    name = "vid"
    paper = "Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019"
    formula = "b · Σ_stages mean ½·((μ(f_s) − f_t)²/σ² + log σ²)"
    reads = frozenset({"stages"})

    def __init__(self, setup, options):
        super().__init__(setup, options)
        check_stages(setup, self.name)
        self.weight = options.beta
        pairs = zip(setup.student.stages, setup.teacher.stages, strict=True)
        self.losses = nn.ModuleList(VIDLoss(s.shape[1], t.shape[1], t.shape[1]) for s, t in pairs)

    def forward(self, student, teacher, batch):
        stages = zip(self.losses, student.stages, teacher.stages, strict=True)
        return self.weight * sum(loss(f_s, f_t) for loss, f_s, f_t in stages)
