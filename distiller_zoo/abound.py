"""Activation boundaries.

Heo, Lee, Yun and Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
Neurons", AAAI 2019. First the student's features learn which of the teacher's neurons are active,
equation 4; then the labels (and KD) train the whole student.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method, MethodError, Stage, Term
from distiller_zoo._layers import OTHERS, ConvRegressor, check_stages

__all__ = ["ABLoss"]


class ABLoss(nn.Module):
    """The alternative hinge loss on pre-activations, stage i of n weighted 2^(i-n+1), times 3 / 1000 / B."""

    def __init__(self, feat_num: int, margin: float = 1.0):
        super().__init__()
        self.feat_num, self.margin = feat_num, margin

    def forward(self, g_s: list[Tensor], g_t: list[Tensor]) -> list[Tensor]:
        """Lists of (B, channels, height, width), pairs of one shape; a scalar a stage."""
        return [2.0 ** (i - self.feat_num + 1) * self._hinge(s, t) / len(s) / 1000 * 3
                for i, (s, t) in enumerate(zip(g_s, g_t, strict=True))]

    def _hinge(self, s, t):
        return F.relu(self.margin - torch.where(t > 0, s, -s)).square().sum()


class Boundaries(Term):
    """The first stage's loss: the student's pre-activations, brought to the teacher's shapes, against them."""

    reads = frozenset({"preacts"})

    def __init__(self, connectors: nn.ModuleList, weight: float):
        super().__init__()
        self.connectors, self.weight = connectors, weight
        self.loss = ABLoss(len(connectors))

    def forward(self, student, teacher, batch):
        connected = [connect(f) for connect, f in zip(self.connectors, student.preacts, strict=True)]
        return self.weight * sum(self.loss(connected, teacher.preacts))


class ActivationBoundaries(Method):
    name = "abound"
    paper = "Heo et al., Knowledge Transfer via Distillation of Activation Boundaries, AAAI 2019"
    formula = "first stage: b · Σ_i 2^(i−n+1)·3/1000/B · hinge of pre-activations; then CE (and KD) alone"
    in_main = False
    stage_reads = frozenset({"preacts"})

    def __init__(self, setup, options):
        super().__init__(setup, options)
        check_stages(setup, self.name)
        self.weight = options.beta
        pairs = zip(setup.student.preacts, setup.teacher.preacts, strict=True)
        try:
            self.connectors = nn.ModuleList(
                nn.Identity() if s.shape == t.shape else ConvRegressor(s.shape, t.shape, relu=False) for s, t in pairs)
        except ValueError as error:
            raise MethodError(f"abound cannot connect {setup.student_name} to {setup.teacher_name} ({error}): "
                              f"{OTHERS}") from None
        self.connectors.requires_grad_(False)

    def stage(self, student):
        return Stage("boundaries", Boundaries(self.connectors, self.weight), (self.connectors,), trains_features=True,
                     weight=self.weight)
