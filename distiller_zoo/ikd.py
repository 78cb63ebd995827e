"""Intra-class knowledge distillation.

Wang, Xu, Yang, Huang and Cheng, "Debiased Distillation for Consistency Regularization", AAAI 2025.
avg * T^2 * (1/B) sum_i KL(softmax(m_{y_i} / T) || softmax(z^s_i / T)).

m_c is the mean of the teacher's logits over the views of class c that the first epoch shows; in that
epoch the term is silent. The published code divides the sums' columns by the class counts where rows
are meant: the same for equal counts, wrong for unequal ones, and NaN where a class has no sample.
"""
import torch
from torch import Tensor, nn

from distiller_zoo._base import Term
from distiller_zoo._logits import kl, log_softmax
from helper.util import distributed

__all__ = ["IKDLoss"]


class IKDLoss(nn.Module):
    """T^2 * KL of the student to the teacher's class mean, per sample."""

    def __init__(self, T: float = 2.0):
        super().__init__()
        self.T = T

    def forward(self, logits_student: Tensor, class_means: Tensor, target: Tensor) -> Tensor:
        """logits (B, C), class_means (C, C) with a class a row, target (B,) int64; (B,)."""
        return kl(log_softmax(class_means[target], self.T), log_softmax(logits_student, self.T)) * self.T**2


class IKD(Term):
    """The IKD term: collects the class means in epoch 1 and pulls the student to them from epoch 2.

    A class that epoch 1 does not show contributes nothing. The sums are kept in float64: their
    result does not depend on the order of the batches beyond float32's resolution. With `fix_means`
    the means are given instead; the term still acts from epoch 2, so that only the means differ.
    """

    sums: Tensor
    counts: Tensor
    means: Tensor

    reads = frozenset({"logits"})

    def __init__(self, num_classes: int, temperature: float, weight: float):
        super().__init__()
        self.weight = weight
        self.loss = IKDLoss(temperature)
        self.collecting, self.fixed = True, False
        self.register_buffer("sums", torch.zeros(num_classes, num_classes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("means", torch.zeros(num_classes, num_classes))

    def mode(self):
        return self.collecting

    def start_epoch(self, epoch, generator):
        self.collecting = epoch == 1

    def fix_means(self, sums: Tensor, counts: Tensor) -> None:
        """Take the means from sums (C, C), a class a row, of counts (C,) logits, instead of collecting them."""
        self.sums.copy_(sums)
        self.counts.copy_(counts)
        self.fixed = True

    def forward(self, student, teacher, batch):
        if self.collecting:
            if not self.fixed:
                # one_hot(y)ᵀ @ logits is deterministic on CUDA, where index_add_ is not.
                one_hot = torch.nn.functional.one_hot(batch.labels, len(self.counts)).double()
                self.sums += one_hot.T @ teacher.logits.double()
                self.counts += one_hot.sum(0)
            return 0.0 * student.logits.sum()  # connected to the student: IKD may be a run's only term
        per_sample = self.loss(student.logits, self.means, batch.labels)
        seen = self.counts[batch.labels] > 0
        return self.weight * torch.where(seen, per_sample, 0.0).mean()

    def end_epoch(self, epoch):
        if self.collecting:
            if not self.fixed:  # each process has collected its own share
                self.sums.copy_(distributed.all_reduce_sum(self.sums))
                self.counts.copy_(distributed.all_reduce_sum(self.counts))
            self.means.copy_(self.sums / self.counts.clamp(min=1)[:, None])
