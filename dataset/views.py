"""The views of images that training sees, and their order.

A view of an image is: pad it by 4 black pixels, cut a window of its own size, mirror it or not.
That makes 9 vertical x 9 horizontal offsets x 2 = 162 views, of CIFAR's 32x32 images as of Tiny-ImageNet's
64x64. Each equals, bit for bit, torchvision's RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor,
Normalize. A view's number is (vertical * 9 + horizontal) * 2 + mirrored, in 0..161.
"""
from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.util.seeding import derive_seed

if TYPE_CHECKING:
    from dataset._base import Data, Split

PADDING = 4
OFFSETS = 2 * PADDING + 1


def views_of(flip: bool) -> Tensor:
    """The numbers of an image's views, ascending, int64: all 162, or the 81 that are not mirrored."""
    return torch.arange(0, 2 * OFFSETS * OFFSETS, 1 if flip else 2)


class Batch(NamedTuple):
    """A training batch.

    images: (B, 3, height, width) float32, normalised
    labels: (B,) int64
    index: (B,) int64, the samples' places in the training set
    view: (B,) int64, the number of each image's view; None where the views of a data set cannot be counted
    whole: with several processes, the size of the batch of which this is one process's share; else None
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides the method of tuple
    view: Tensor | None
    whole: int | None = None

    @property
    def size(self) -> int:
        """The samples of the batch, those of other processes counted in."""
        return self.whole or len(self.labels)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, as torchvision's ToTensor and Normalize; mean, std: (3, 1, 1)."""
    return images.float().div_(255).sub_(mean).div_(std)


def epoch_plan(n: int, flip: bool, seed: int, trial: str, phase: str, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of n samples in an epoch and the view that each position shows.

    A pure function of its arguments, drawn on the CPU: the same on every device. `phase` is "train", or
    the name of a method's first stage.

    Returns (order, view), each (n,) int64.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, trial, phase, epoch, "views"))
    order = torch.randperm(n, generator=generator)
    window = torch.randint(OFFSETS * OFFSETS, (n,), generator=generator)
    mirrored = torch.randint(2, (n,), generator=generator) if flip else torch.zeros(n, dtype=torch.int64)
    return order, window * 2 + mirrored


class TrainViews:
    """A training set in memory on a device (TrainData), of which batches are gathered by (index, view).

    data: its training images are padded once and kept as one uint8 tensor on `device`
    """

    def __init__(self, data: Data, device: torch.device):
        split, self.flip = cast("Split", data.train), data.flip
        self.height, self.width = split.images.shape[2:]
        self.images = F.pad(split.images, (PADDING,) * 4).to(device)
        self.labels = split.labels.to(device)
        self.mean, self.std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (data.mean, data.std))
        padded_width = self.images.shape[3]
        # Where the pixels of window (0, 0) lie in a padded image: (3, height, width).
        channel = torch.arange(3, device=device).view(3, 1, 1) * self.images[0, 0].numel()
        row = torch.arange(self.height, device=device).view(1, -1, 1) * padded_width
        self.column = torch.arange(self.width, device=device)
        self.corner = channel + row
        self.padded_width = padded_width
        self.image_size = self.images[0].numel()

    def __len__(self) -> int:
        return len(self.labels)

    def plan(self, seed: int, trial: str, phase: str, epoch: int) -> tuple[Tensor, Tensor]:
        """The epoch_plan of this training set."""
        return epoch_plan(len(self), self.flip, seed, trial, phase, epoch)

    def gather(self, index: Tensor, view: Tensor) -> Tensor:
        """The normalised views, (B, 3, height, width) float32; index, view: (B,) int64 on the device."""
        mirrored = (view % 2).view(-1, 1)
        window = view // 2
        column = torch.where(mirrored == 1, self.column.flip(0), self.column).view(-1, 1, 1, self.width)
        start = index * self.image_size + (window // OFFSETS) * self.padded_width + window % OFFSETS
        pixels = self.images.view(-1)[start.view(-1, 1, 1, 1) + self.corner + column]
        return normalise(pixels, self.mean, self.std)

    def batch(self, index: Tensor, view: Tensor) -> Batch:
        """The batch of these samples in these views."""
        return Batch(self.gather(index, view), self.labels[index], index, view)

    def batches(self, plan: tuple[Tensor, Tensor], batch_size: int) -> Generator[Batch, None, None]:
        """The batches of an epoch, in the plan's order; the last, smaller one is kept."""
        order, view = (x.to(self.images.device) for x in plan)
        for i in range(0, len(order), batch_size):
            yield self.batch(order[i : i + batch_size], view[i : i + batch_size])


class EvalImages:
    """A test set in memory on a device (EvalData), in batches of normalised images."""

    def __init__(self, data: Data, device: torch.device):
        split = cast("Split", data.test)
        self.images, self.labels = split.images.to(device), split.labels.to(device)
        self.mean, self.std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of a part of the samples, in order."""
        batches = (values[part].split(batch_size) for values in (self.images, self.labels))
        for images, labels in zip(*batches, strict=True):
            yield normalise(images, self.mean, self.std), labels
