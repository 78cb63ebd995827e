"""What a data set is: names, images and labels; all in memory, or read as they are needed (see folder.py)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dataset.views import EvalImages, TrainViews
from helper.util.errors import UserError


class DataError(UserError):
    """Data that is missing or cannot be fetched or read; the message says the cure."""

    same_everywhere = False  # each machine has its own disk


@dataclass(frozen=True)
class Split:
    """images: (n, 3, height, width) uint8; labels: (n,) int64 in [0, classes)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """The samples at these places, in this order; index: (m,) int64."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    """An image classification data set.

    mean, std: per channel, of pixels scaled to [0, 1]; the normalisation of training and test
    flip: whether a training view may be mirrored (not for digits, whose mirror images are no digits)
    note: what was done to the training set, for the run's first lines, as '; imbalance 0.01: ...'
    shots: (classes,) int64, the training images of each class in a long tail, before label noise; else None
    countable: whether an image has finitely many views, which TrainViews numbers
    superclasses: of each class, in their order, the name of its superclass; empty where there are none
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    train: Split
    test: Split
    note: str = ""
    shots: Tensor | None = None
    superclasses: tuple[str, ...] = ()

    countable: ClassVar[bool] = True

    def train_views(self, device: torch.device) -> TrainViews:
        """The training set as the loop reads it: len, labels, plan(...), batches(plan, batch_size)."""
        return TrainViews(self, device)

    def test_images(self, device: torch.device) -> EvalImages:
        """The test set as the loop reads it: len, labels, batches(batch_size)."""
        return EvalImages(self, device)

    def content(self) -> str | None:
        """What a data set that is read from its files as needed consists of, in a few words; None for one in memory,
        which a run's options name."""
        return None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, height, width) of what a network sees."""
        return tuple(self.train.images.shape[1:])
