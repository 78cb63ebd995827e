"""Where a step's teacher outputs come from: what every source offers, and the three that there are."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dataset import Batch
from models import Classifier, Outputs
from models.precision import FLOAT32, Precision


class TeacherSource:
    """NoTeacher, LiveTeacher or CachedTeacher."""

    def start_epoch(self, plan: tuple[Tensor, ...]) -> None:
        """Called before an epoch with its plan, (order, view) of the epoch's samples, as dataset.epoch_plan."""

    def __call__(self, batch: Batch) -> Outputs:
        """The fields that the objective reads, float32, for the batch's views."""
        raise NotImplementedError

    def gathers_on(self, device: torch.device) -> bool:
        """Whether a call does nothing but gather on this device, at most: then it may be part of a captured step."""
        return False


class NoTeacher(TeacherSource):
    """For runs that learn from the labels alone."""

    def __call__(self, batch: Batch) -> Outputs:
        return Outputs()

    def gathers_on(self, device: torch.device) -> bool:
        return True


class LiveTeacher(TeacherSource):
    """A frozen teacher, in evaluation mode, that sees the student's views.

    reads: the fields of Outputs that are computed; no others are kept
    """

    def __init__(self, network: Classifier, reads: frozenset[str], precision: Precision = FLOAT32):
        self.network, self.reads, self.precision = network.eval(), reads, precision
        self.frozen: Classifier | None = None  # made of the first images

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        if not self.reads:
            return Outputs()
        if self.frozen is None:
            self.frozen = self.precision.frozen(self.network, batch.images[:1])
        return self.precision.outputs(self.frozen, batch.images, self.reads, batch.strong)


class WithStrongView(TeacherSource):
    """A source of the usual view's outputs, beside a live teacher that sees the second view, which no cache holds."""

    def __init__(self, source: TeacherSource, live: LiveTeacher):
        self.source, self.live = source, live

    def start_epoch(self, plan):
        self.source.start_epoch(plan)

    def __call__(self, batch: Batch) -> Outputs:
        return self.source(batch)._replace(strong=self.live(batch).strong)


class CachedTeacher(TeacherSource):
    """In the place of LiveTeacher: looks the outputs up by (index, view). Gathers only, so that nothing waits
    for the device where the tables are on it; where they are on the host, each step waits for one transfer.

    tables: by field, (n, views, width), of any float type
    flip: whether the views are mirrored too, as Data.flip
    fill: called with an epoch's plan before it, to bring its rows into the tables; None where all are there
    """

    def __init__(self, tables: dict[str, Tensor], flip: bool,
                 fill: Callable[[tuple[Tensor, ...]], None] | None = None):
        self.tables, self.flip, self.fill = tables, flip, fill

    def start_epoch(self, plan):
        if self.fill is not None:
            self.fill(plan)

    def gathers_on(self, device: torch.device) -> bool:
        """Whether the tables are there; those that grow are read from their file."""
        return self.fill is None and all(table.device.type == device.type for table in self.tables.values())

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """The fields held, float32, on the batch's device."""
        assert batch.view is not None  # a cache is of countable views
        place = batch.view if self.flip else batch.view // 2
        device = batch.index.device
        fields: dict[str, Any] = {}
        for name, table in self.tables.items():
            row = (batch.index * table.shape[1] + place).to(table.device)
            fields[name] = table.flatten(0, 1).index_select(0, row).to(device).float()
        return Outputs(**fields)

    @torch.no_grad()
    def class_sums(self, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """The logits summed over all views of each class, (classes, classes) with a class a row, and how many
        views that are, (classes,); both float64. labels: (n,) int64, of the training set."""
        table = self.tables["logits"]
        one_hot = torch.nn.functional.one_hot(labels.to(table.device), num_classes).double()
        sums = one_hot.new_zeros(num_classes, table.shape[2])
        for i in range(0, len(table), 512):  # in float64 all at once would be several gigabytes
            sums += one_hot[i : i + 512].T @ table[i : i + 512].double().sum(1)
        return sums, one_hot.sum(0) * table.shape[1]
