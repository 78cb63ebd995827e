"""Where a step's teacher outputs come from: what every source offers, and the two that keep nothing on the disk."""
from typing import Protocol

import torch
from torch import Tensor

from dataset import Batch
from models import Classifier, Outputs
from models.precision import FLOAT32, Precision


class TeacherSource(Protocol):
    """LiveTeacher, NoTeacher, or helper/teacher/cache.py's CachedTeacher."""

    def start_epoch(self, plan: tuple[Tensor, ...]) -> None:
        """Called before an epoch with its plan, (order, view) of the epoch's samples."""

    def __call__(self, batch: Batch) -> Outputs:
        """The fields that the objective reads, float32, for the batch's views."""

    def gathers_on(self, device: torch.device) -> bool:
        """Whether a call does nothing but gather on this device, at most: then it may be part of a captured step."""


class NoTeacher:
    """For runs that learn from the labels alone."""

    def start_epoch(self, plan: tuple[Tensor, ...]) -> None:
        """Nothing to prepare."""

    def __call__(self, batch: Batch) -> Outputs:
        return Outputs()

    def gathers_on(self, device: torch.device) -> bool:
        return True


class LiveTeacher:
    """A frozen teacher, in evaluation mode, that sees the student's views.

    reads: the fields of Outputs that are computed; no others are kept
    """

    def __init__(self, network: Classifier, reads: frozenset[str], precision: Precision = FLOAT32):
        self.network, self.reads, self.precision = precision.prepare(network.eval()), reads, precision

    def start_epoch(self, plan: tuple[Tensor, ...]) -> None:
        """Nothing to prepare."""

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        return self.precision.outputs(self.network, batch.images, self.reads, batch.strong) if self.reads else Outputs()

    def gathers_on(self, device: torch.device) -> bool:
        return False


class WithStrongView:
    """A source of the usual view's outputs, beside a live teacher that sees the second view, which no cache holds."""

    def __init__(self, source: TeacherSource, live: LiveTeacher):
        self.source, self.live = source, live

    def start_epoch(self, plan: tuple[Tensor, ...]) -> None:
        """Prepares the usual view's source."""
        self.source.start_epoch(plan)

    def __call__(self, batch: Batch) -> Outputs:
        return self.source(batch)._replace(strong=self.live(batch).strong)

    def gathers_on(self, device: torch.device) -> bool:
        return False
