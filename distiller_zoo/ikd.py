"""Intra-class knowledge distillation.

Wang, Xu, Yang, Huang and Cheng, "Debiased Distillation for Consistency Regularization", AAAI 2025.
avg * T^2 * (1/B) sum_i KL(softmax(m_{y_i} / T) || softmax(z^s_i / T)).

m_c is the mean of the teacher's logits over the views of class c that the first epoch shows; in that
epoch the term is silent. The published code divides the sums' columns by the class counts where rows
are meant: the same for equal counts, wrong for unequal ones, and NaN where a class has no sample.
"""
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from distiller_zoo._base import Term
from distiller_zoo._logits import kl, log_softmax
from helper.util import distributed

__all__ = ["ClassMeans", "IKDLoss"]


class IKDLoss(nn.Module):
    """T^2 * KL of the student to the teacher's class mean.

    reduction: "mean" over the batch, or "none" for a loss per sample
    Raises ValueError for another reduction.
    """

    def __init__(self, T: float = 2.0, reduction: str = "mean"):
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction is 'mean' or 'none', not {reduction!r}")
        self.T, self.reduction = T, reduction

    def forward(self, logits_student: Tensor, class_means: Tensor, target: Tensor) -> Tensor:
        """logits (B, C), class_means (C, C) with a class a row, target (B,) int64; a scalar, or (B,)."""
        loss = kl(log_softmax(class_means[target], self.T), log_softmax(logits_student, self.T)) * self.T**2
        return loss.mean() if self.reduction == "mean" else loss


class ClassMeans(nn.Module):
    """A teacher's mean logits of each class, for IKDLoss in a trainer of one's own.

    Summed in float64, so that the order of the batches does not matter.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.register_buffer("sums", torch.zeros(num_classes, num_classes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(self, logits_teacher: Tensor, target: Tensor) -> None:
        """Add logits (B, C) of images with labels target (B,) int64."""
        # one_hot(y)ᵀ @ logits is deterministic on CUDA, where index_add_ is not.
        one_hot = torch.nn.functional.one_hot(target, len(self.counts)).double()
        self.sums += one_hot.T @ logits_teacher.double()
        self.counts += one_hot.sum(0)

    @torch.no_grad()
    def collect(self, teacher: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Add the logits of `teacher`, in evaluation mode meanwhile, for all (images, target) of `loader`, which are
        moved to where the sums are; returns the means."""
        training = teacher.training
        teacher.eval()
        for images, target in loader:
            self.update(teacher(images.to(self.sums.device)), target.to(self.sums.device))
        teacher.train(training)
        return self.means

    @property
    def means(self) -> Tensor:
        """(C, C) float32, a class a row; 0 for a class of which nothing was seen."""
        return (self.sums / self.counts.clamp(min=1)[:, None]).float()


def smoothed_labels(num_classes: int, T: float, smoothing: float = 0.1) -> Tensor:
    """(C, C) float64, a class a row: logits whose softmax(·/T) is the label smoothed as by Szegedy et al. (CVPR 2016),
    (1 − s)·one-hot + s/C. In the place of class means they show what IKD does beyond smoothing."""
    q = torch.full((num_classes, num_classes), smoothing / num_classes, dtype=torch.float64)
    return T * (q + (1 - smoothing) * torch.eye(num_classes, dtype=torch.float64)).log()


class IKD(Term):
    """The IKD term: collects the class means in epoch 1 and pulls the student to them from epoch 2.

    A class that epoch 1 does not show contributes nothing. With `fix_means` the means are given instead; the term
    still acts from epoch 2, so that only the means differ.
    """

    means: Tensor
    reads = frozenset({"logits"})

    def __init__(self, num_classes: int, temperature: float, weight: float):
        super().__init__()
        self.weight = weight
        self.loss = IKDLoss(temperature, reduction="none")
        self.collecting, self.fixed = True, False
        self.collected = ClassMeans(num_classes)
        self.register_buffer("means", torch.zeros(num_classes, num_classes))

    def mode(self):
        return self.collecting

    def start_epoch(self, epoch, generator):
        self.collecting = epoch == 1

    def fix_means(self, sums: Tensor, counts: Tensor) -> None:
        """Take the means from sums (C, C), a class a row, of counts (C,) logits, instead of collecting them."""
        self.collected.sums.copy_(sums)
        self.collected.counts.copy_(counts)
        self.fixed = True

    def forward(self, student, teacher, batch):
        if self.collecting:
            if not self.fixed:
                self.collected.update(teacher.logits, batch.labels)
            return 0.0 * student.logits.sum()  # connected to the student: IKD may be a run's only term
        per_sample = self.loss(student.logits, self.means, batch.labels)
        seen = self.collected.counts[batch.labels] > 0
        return self.weight * torch.where(seen, per_sample, 0.0).mean()

    def end_epoch(self, epoch):
        if self.collecting:
            if not self.fixed:  # each process has collected its own share
                for collected in (self.collected.sums, self.collected.counts):
                    collected.copy_(distributed.all_reduce_sum(collected))
            self.means.copy_(self.collected.means)
