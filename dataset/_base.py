"""What a data set is: names, images and labels; and what the training loop reads of it.

The images are in memory (Split) or in files (dataset/_stream.py): each implements Samples, and hands out the training
and the test set as TrainData and EvalData, so that no other code distinguishes the two.
"""
from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dataset.views import Batch, EvalImages, TrainViews
from helper.util.errors import UserError


class DataError(UserError):
    """Data that is missing or cannot be fetched or read; the message says what to do."""

    same_everywhere = False  # each machine has its own disk


class TrainData(Protocol):
    """A training set on a device; labels: (n,) int64 on the device."""

    labels: Tensor

    def __len__(self) -> int: ...

    def plan(self, seed: int, trial: str, phase: str, epoch: int) -> tuple[Tensor, ...]:
        """The order of the samples in an epoch and what decides each position's view, both (n,) int64; with the second
        view, what is drawn for each position's, (n, DRAWS) float32.

        A pure function of its arguments, drawn on the CPU. `phase` is "train", or the name of a method's first stage.
        """

    def batches(self, plan: tuple[Tensor, ...], batch_size: int) -> Generator[Batch, None, None]:
        """The batches of a plan, or of a part of one, in its order; the last, smaller one is kept."""


class EvalData(Protocol):
    """A test set on a device; labels: (n,) int64 on the device."""

    labels: Tensor

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of a part of the samples, in order, of at most `batch_size` at once."""


class Samples(Protocol):
    """Images and their labels, wherever they are.

    labels: (n,) int64 in [0, classes); countable: whether an image has finitely many views, numbered by TrainViews
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def countable(self) -> bool: ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, height, width) of what a network sees."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Samples:
        """The samples at these places, in this order; index: (m,) int64."""

    def relabelled(self, labels: Tensor) -> Samples:
        """The same images with other labels."""

    def stamp(self) -> bytes:
        """Changes when the files do that the samples are read from; empty for samples in memory."""

    def train_data(self, data: Data, device: torch.device, strong: bool) -> TrainData:
        """These samples as a training set; data: the data set that they are of; strong: with the second view of each
        image. Raises DataError where there is none."""

    def eval_data(self, data: Data, device: torch.device) -> EvalData:
        """These samples as a test set; data: the data set that they are of."""


@dataclass(frozen=True)
class Split:
    """Samples in memory; images: (n, 3, height, width) uint8; labels: (n,) int64 in [0, classes)."""

    images: Tensor
    labels: Tensor

    countable = True

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])

    def relabelled(self, labels: Tensor) -> Split:
        return replace(self, labels=labels)

    def stamp(self) -> bytes:
        return b""

    def train_data(self, data: Data, device: torch.device, strong: bool) -> TrainViews:
        return TrainViews(self, data, device, strong)

    def eval_data(self, data: Data, device: torch.device) -> EvalImages:
        return EvalImages(self, data, device)


@dataclass(frozen=True)
class Data:
    """An image classification data set.

    mean, std: per channel, of pixels scaled to [0, 1]; the normalisation of training and test
    flip: whether a training view may be mirrored (not for digits, whose mirror images are no digits)
    note: what was done to the training set, for the run's first lines, as '; imbalance 0.01: ...'
    shots: (classes,) int64, the training images of each class in a long tail, before label noise; else None
    superclasses: of each class, in their order, the name of its superclass; empty where there are none
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    train: Samples
    test: Samples
    note: str = ""
    shots: Tensor | None = None
    superclasses: tuple[str, ...] = ()

    @property
    def countable(self) -> bool:
        return self.train.countable

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, height, width) of what a network sees."""
        return self.train.image_shape

    def train_views(self, device: torch.device, strong: bool = False) -> TrainData:
        """The training set as the loop reads it; strong: with the second view of each image.

        Raises DataError where there is none.
        """
        return self.train.train_data(self, device, strong)

    def test_images(self, device: torch.device) -> EvalData:
        """The test set as the loop reads it."""
        return self.test.eval_data(self, device)

    def content(self) -> str | None:
        """What a data set that is read from its files as needed consists of, in a few words; None for one in memory,
        which a run's options name."""
        stamps = [self.train.stamp(), self.test.stamp()]
        if stamps == [b"", b""]:
            return None
        return f"{len(self.train)}+{len(self.test)} images, {hashlib.sha256(b''.join(stamps)).hexdigest()[:12]}"
