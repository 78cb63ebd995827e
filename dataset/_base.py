"""What a data set is: names, images and labels, all in memory."""
from dataclasses import dataclass

from torch import Tensor


class DataError(ValueError):
    """Data that is missing or cannot be fetched or read; the message says the cure."""


@dataclass(frozen=True)
class Split:
    """images: (n, 3, height, width) uint8; labels: (n,) int64 in [0, classes)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """An image classification data set.

    mean, std: per channel, of pixels scaled to [0, 1]; the normalisation of training and test
    flip: whether a training view may be mirrored (not for digits, whose mirror images are no digits)
    superclasses: of each class, in their order, the name of its superclass; empty where there are none
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    train: Split
    test: Split
    superclasses: tuple[str, ...] = ()
