"""Distillation with singular value decomposition.

Lee, Kim and Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018.
RBF distances of the right singular vectors of consecutive stages, equations 2 to 5.
"""
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method
from distiller_zoo._layers import check_channels, check_stages

__all__ = ["KDSVD"]

EXTRA = 3  # the student offers this many vectors more, of which each teacher's takes the nearest
TINY = 1e-6  # relative distance of squared singular values below which two vectors count as one space


def _right(x):
    """x (B, M, C) -> its singular values, (B, rank), and right singular vectors, (B, C, rank)."""
    # R of x = QR has the same ones, without the left vectors, which are most of the work where M is large.
    core = torch.linalg.qr(x, mode="r").R if x.shape[1] > x.shape[2] else x
    _, values, vectors = torch.linalg.svd(core, full_matrices=False)
    return values, vectors.transpose(1, 2)


class RightSingularVectors(torch.autograd.Function):
    """x (B, M, C) -> the first n right singular vectors, (B, C, n).

    Backward leaves out rotations among vectors of equal singular values, whose derivative is not
    finite: torch's own backward makes every gradient NaN where a channel is dead.
    """

    @staticmethod
    def forward(ctx, x, n):
        values, vectors = _right(x)
        ctx.save_for_backward(x, values, vectors)
        ctx.n = n
        return vectors[..., :n]

    @staticmethod
    def backward(ctx, grad):
        # First-order perturbation of the eigenvectors v_i of xᵀx with eigenvalues λ:
        # dv_i = Σ_j v_j v_jᵀ d(xᵀx) v_i / (λ_i − λ_j), and 1 / λ_i on the space that v does not span.
        x, values, v = ctx.saved_tensors
        squares = values.square()
        first, tiny = squares[:, None, : grad.shape[2]], TINY * squares[:, :1, None]
        gaps = first - squares[:, :, None]  # (B, rank, n)
        inside = v.transpose(1, 2) @ grad
        shares = torch.where(gaps.abs() > tiny, inside / torch.where(gaps == 0, 1.0, gaps), 0.0)
        outside = torch.where(first > tiny, (grad - v @ inside) / first.clamp(min=1e-30), 0.0)
        gram = (v @ shares + outside) @ v[..., : grad.shape[2]].transpose(1, 2)
        return x @ (gram + gram.transpose(1, 2)), None


class KDSVD(nn.Module):
    """Per pair of consecutive stages: the squared difference of both networks' RBF distances, over the batch."""

    def __init__(self, k: int = 1):
        super().__init__()
        self.k = k

    def forward(self, g_s: list[Tensor], g_t: list[Tensor]) -> list[Tensor]:
        """Lists of (B, channels, height, width), equal in length and channels; a scalar a pair of stages."""
        pairs = [self._aligned(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=True)]
        losses = []
        for (s_before, t_before), (s, t) in pairwise(pairs):
            difference = _rbf(s, s_before) - _rbf(t, t_before).detach()
            losses.append(difference.square().sum() / len(s))
        return losses

    def _aligned(self, f_s, f_t):
        """The teacher's first k vectors, and for each the student's nearest with its sign, scaled alike."""
        rows_s, rows_t = (f.flatten(2).transpose(1, 2).float() for f in (f_s, f_t))
        v_s = F.normalize(RightSingularVectors.apply(rows_s, self.k + EXTRA), dim=1)
        values, v_t = _right(rows_t)
        v_t = F.normalize(v_t[..., : self.k], dim=1)
        scale = F.normalize(values[:, : self.k], dim=1)[:, None]
        cosine = v_s.transpose(1, 2) @ v_t
        nearest = cosine.abs() == cosine.abs().amax(1, keepdim=True)
        return v_s @ torch.where(nearest, cosine.sign(), 0.0) * scale, v_t * scale


def _rbf(v, v_before):
    """(B, C, C', k)."""
    return (-(v[:, :, None] - v_before[:, None]).square() / 8).exp()


class SingularValue(Method):
    name = "kdsvd"
    paper = "Lee et al., Self-supervised Knowledge Distillation Using Singular Value Decomposition, ECCV 2018"
    formula = "b · Σ_i mean ‖RBF(v_s^i, v_s^{i−1}) − RBF(v_t^i, v_t^{i−1})‖², aligned right singular vectors"
    reads = frozenset({"stages"})
    uncapturable = "decomposes matrices, for which PyTorch waits for the device"
    beta_published = False

    def __init__(self, setup, options):
        super().__init__(setup, options)
        check_stages(setup, self.name)
        check_channels(setup, self.name, setup.student.stages, setup.teacher.stages)
        self.weight, self.loss = options.beta, KDSVD()

    def forward(self, student, teacher, batch):
        return self.weight * sum(self.loss(student.stages, teacher.stages))
