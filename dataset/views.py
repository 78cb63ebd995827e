"""The views of images that training sees, and their order.

A view of an image is: pad it by 4 black pixels, cut a window of its own size, mirror it or not.
That makes 9 vertical x 9 horizontal offsets x 2 = 162 views, of CIFAR's 32x32 images as of Tiny-ImageNet's
64x64. Each equals, bit for bit, torchvision's RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor,
Normalize. A view's number is (vertical * 9 + horizontal) * 2 + mirrored, in 0..161.
"""
from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset._strong import augment, strong_draws
from helper.util.seeding import derive_seed

if TYPE_CHECKING:
    from dataset._base import Data, Samples, Split

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
    strong: (B, 3, height, width) float32, the strongly augmented second view (dataset/_strong.py); None where no term
        reads it
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides the method of tuple
    view: Tensor | None
    whole: int | None = None
    strong: Tensor | None = None

    @property
    def size(self) -> int:
        """The samples of the batch, those of other processes counted in."""
        return self.whole or len(self.labels)


class OnDevice:
    """What TrainData and EvalData have in common: labels on a device, and the data set's normalisation."""

    def __init__(self, samples: Samples, data: Data, device: torch.device):
        self.labels = samples.labels.to(device)
        self.mean, self.std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.labels)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32, as torchvision's ToTensor and Normalize."""
        return images.float().div_(255).sub_(self.mean).div_(self.std)


def epoch_plan(n: int, flip: bool, seed: int, trial: str, phase: str, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of n samples in an epoch and the view that each position shows, both (n,) int64; see TrainData.plan."""
    generator = torch.Generator().manual_seed(derive_seed(seed, trial, phase, epoch, "views"))
    order = torch.randperm(n, generator=generator)
    window = torch.randint(OFFSETS * OFFSETS, (n,), generator=generator)
    mirrored = torch.randint(2, (n,), generator=generator) if flip else torch.zeros(n, dtype=torch.int64)
    return order, window * 2 + mirrored


class TrainViews(OnDevice):
    """A training set in memory on a device (TrainData), of which batches are gathered by (index, view).

    split: its images are padded once and kept as one uint8 tensor on `device`; data: the data set that they are of
    strong: whether a batch holds the second view too
    """

    def __init__(self, split: Split, data: Data, device: torch.device, strong: bool):
        super().__init__(split, data, device)
        self.flip, self.strong = data.flip, strong
        height, self.width = split.images.shape[2:]
        self.images = F.pad(split.images, (PADDING,) * 4).to(device)
        self.padded_width, self.image_size = self.images.shape[3], self.images[0].numel()
        # Where the pixels of window (0, 0) lie in a padded image: (3, height, width).
        channel = torch.arange(3, device=device).view(3, 1, 1) * self.images[0, 0].numel()
        row = torch.arange(height, device=device).view(1, -1, 1) * self.padded_width
        self.corner = channel + row
        self.column = torch.arange(self.width, device=device)

    def plan(self, seed: int, trial: str, phase: str, epoch: int) -> tuple[Tensor, ...]:
        """The epoch_plan of this training set; with the second view, also what is drawn for it, (n, DRAWS)."""
        order, view = epoch_plan(len(self), self.flip, seed, trial, phase, epoch)
        if not self.strong:
            return order, view
        return order, view, strong_draws(len(self), seed, trial, phase, epoch)[order]

    def gather(self, index: Tensor, view: Tensor) -> Tensor:
        """The normalised views, (B, 3, height, width) float32; index, view: (B,) int64 on the device."""
        return self.normalise(self._pixels(index, view))

    def gather_strong(self, index: Tensor, draws: Tensor) -> Tensor:
        """The normalised second views, (B, 3, height, width) float32; index: (B,) int64, draws: (B, DRAWS)."""
        view = (draws[:, 0] * OFFSETS**2).long() * 2 + ((draws[:, 1] < 0.5) if self.flip else 0)
        return self.normalise(augment(self._pixels(index, view), draws))

    def _pixels(self, index, view):
        mirrored = (view % 2).view(-1, 1)
        window = view // 2
        column = torch.where(mirrored == 1, self.column.flip(0), self.column).view(-1, 1, 1, self.width)
        start = index * self.image_size + (window // OFFSETS) * self.padded_width + window % OFFSETS
        return self.images.view(-1)[start.view(-1, 1, 1, 1) + self.corner + column]

    def batch(self, index: Tensor, view: Tensor, draws: Tensor | None = None) -> Batch:
        """The batch of these samples in these views, with the second view of these draws."""
        strong = None if draws is None else self.gather_strong(index, draws)
        return Batch(self.gather(index, view), self.labels[index], index, view, strong=strong)

    def batches(self, plan: tuple[Tensor, ...], batch_size: int) -> Generator[Batch, None, None]:
        """The batches of an epoch, in the plan's order; the last, smaller one is kept."""
        plan = tuple(x.to(self.images.device) for x in plan)
        for i in range(0, len(plan[0]), batch_size):
            yield self.batch(*(x[i : i + batch_size] for x in plan))


class EvalImages(OnDevice):
    """A test set in memory on a device (EvalData), in batches of normalised images."""

    def __init__(self, split: Split, data: Data, device: torch.device):
        super().__init__(split, data, device)
        self.images = split.images.to(device)

    def batches(self, batch_size: int, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of a part of the samples, in order."""
        batches = (values[part].split(batch_size) for values in (self.images, self.labels))
        for images, labels in zip(*batches, strict=True):
            yield self.normalise(images), labels
