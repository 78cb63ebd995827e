"""Relational knowledge distillation.

Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019.
Smooth L1 of pair distances over their mean, and of triplet angles, equations 6 and 9.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method

__all__ = ["RKDLoss"]

SMALLEST = 1e-12  # a squared distance below this counts as this: its root keeps a finite gradient


class RKDLoss(nn.Module):
    """w_d times the distance-wise and w_a times the angle-wise loss."""

    def __init__(self, w_d: float = 25, w_a: float = 50):
        super().__init__()
        self.w_d, self.w_a = w_d, w_a

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """(B, ...) each; a scalar, 0 for a batch of one."""
        s, t = f_s.flatten(1), f_t.flatten(1)
        return (self.w_d * F.smooth_l1_loss(_distances(s), _distances(t))
                + self.w_a * F.smooth_l1_loss(_angles(s), _angles(t)))


def _distances(e):
    """(B, B) Euclidean distances over their mean positive one; 0 on the diagonal."""
    squares = e.square().sum(1)
    squared = (squares[:, None] + squares - 2 * e @ e.T).clamp(min=SMALLEST)
    distances = squared.sqrt() * (1 - torch.eye(len(e), device=e.device, dtype=e.dtype))
    positive = (distances > 0).sum().clamp(min=1)
    return distances / (distances.sum() / positive).clamp(min=SMALLEST)


def _angles(e):
    """(B, B, B): the cosine, at each sample, of the angle between every two others."""
    directions = F.normalize(e[None] - e[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


class Relational(Method):
    name = "rkd"
    paper = "Park et al., Relational Knowledge Distillation, CVPR 2019"
    formula = "b · (25·smoothL1(distances / mean) + 50·smoothL1(angles)), pooled"
    reads = frozenset({"pooled"})
    whole_batch = True

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.loss = options.beta, RKDLoss()

    def forward(self, student, teacher, batch):
        return self.weight * self.loss(student.pooled, teacher.pooled)
