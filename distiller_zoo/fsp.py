"""Flow of solution procedure.

Yim, Joo, Bae and Kim, "A Gift from Knowledge Distillation", CVPR 2017. First the student's features
learn the teacher's flow matrices, equations 1 and 2; then the labels (and KD) train the whole student.
"""
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method, Stage, Term
from distiller_zoo._layers import check_channels, check_stages, pool_to_smaller

__all__ = ["FSP"]


class FSP(nn.Module):
    """Per pair of consecutive feature maps: the mean squared difference of both networks' flow matrices.

    s_shapes, t_shapes: shapes of the maps, (B, channels, height, width) each
    Raises ValueError where the channels differ.
    """

    def __init__(self, s_shapes, t_shapes):
        super().__init__()
        if [s[1] for s in s_shapes] != [t[1] for t in t_shapes]:
            raise ValueError(f"FSP needs equal channels, not {list(s_shapes)} and {list(t_shapes)}")

    def forward(self, g_s: list[Tensor], g_t: list[Tensor]) -> list[Tensor]:
        """Lists of (B, channels, height, width); a scalar a pair of consecutive maps."""
        return [F.mse_loss(s, t) for s, t in zip(_flows(g_s), _flows(g_t), strict=True)]


def _flows(g):
    """(B, channels, channels'): inner products of the channels of consecutive maps, over the places."""
    for below, above in pairwise(g):
        below, above = (f.flatten(2) for f in pool_to_smaller(below, above))
        yield below @ above.transpose(1, 2) / below.shape[2]


class Flows(Term):
    """The first stage's loss, over the stem and all stages."""

    reads = frozenset({"stem", "stages"})

    def __init__(self, loss: FSP, weight: float):
        super().__init__()
        self.loss, self.weight = loss, weight

    def forward(self, student, teacher, batch):
        return self.weight * sum(self.loss((student.stem, *student.stages), (teacher.stem, *teacher.stages)))


class FlowOfSolution(Method):
    name = "fsp"
    paper = "Yim et al., A Gift from Knowledge Distillation, CVPR 2017"
    formula = "first stage: b · Σ MSE of the flow matrices of consecutive features; then CE (and KD) alone"
    in_main = False
    stage_reads = frozenset({"stem", "stages"})

    def __init__(self, setup, options):
        super().__init__(setup, options)
        check_stages(setup, self.name)
        maps_s, maps_t = ((network.stem, *network.stages) for network in (setup.student, setup.teacher))
        check_channels(setup, self.name, maps_s, maps_t)
        self.weight, self.loss = options.beta, FSP([f.shape for f in maps_s], [f.shape for f in maps_t])

    def stage(self, student):
        return Stage("flows", Flows(self.loss, self.weight), (), trains_features=True, weight=self.weight)
