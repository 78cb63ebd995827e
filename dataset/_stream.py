"""Images that stay in their files: decoded by worker processes, as the loop needs them.

What a view shows follows from a seed of its own, which the epoch's plan holds: a pure function of (seed,
trial, phase, epoch, image), whatever the number of workers. Workers hand over uint8 pixels, a quarter of
the bytes of floats, and the device normalises them, which gives the bits of torchvision's ToTensor and Normalize.
"""
from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dataset._base import Data, DataError
from dataset.views import Batch, normalise
from helper.util.seeding import derive_seed

# Pixels in a batch of the test, at most: those of 64 images of 224x224.
TEST_PIXELS = 64 * 224 * 224


@dataclass(frozen=True)
class Files:
    """Images in files, in the place of Split.

    root: a folder; names: (n,) bytes, the files' paths in it (an array: worker processes share its memory, as
        they would not share a list's); labels: (n,) int64 in [0, classes)
    """

    root: str
    names: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Files:
        """The samples at these places, in this order; index: (m,) int64."""
        return Files(self.root, self.names[index.numpy()], self.labels[index])

    def path(self, i: int) -> str:
        """The path of an image."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names[i])))

    def image(self, i: int) -> Image.Image:
        """The decoded image, RGB. Raises DataError, which names the file, where it cannot be read."""
        try:
            with Image.open(self.path(i)) as image:
                return image.convert("RGB")
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
            reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
            raise DataError(f"{self.path(i)} cannot be read ({reason})") from None


@dataclass(frozen=True)
class StreamedData(Data):
    """A data set whose images stay in their files; train and test are Files.

    size: height and width of what a network sees
    workers: processes that read images; 0: the main one
    """

    size: int = 224
    workers: int = 0

    countable = False

    def train_views(self, device: torch.device) -> StreamedViews:
        return StreamedViews(self, device)

    def test_images(self, device: torch.device) -> StreamedImages:
        return StreamedImages(self, device)

    def content(self) -> str:
        """Its size, and a digest of its files' names, labels, sizes and times of change."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(b"\0".join(part.names.tolist()))
            digest.update(part.labels.numpy().tobytes())
            for i in range(len(part)):
                found = os.stat(part.path(i))
                digest.update(f"{found.st_size} {found.st_mtime_ns} ".encode())
        return f"{len(self.train)}+{len(self.test)} images, {digest.hexdigest()[:12]}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size


class StreamedViews:
    """A training set in files, in the place of TrainViews.

    A view is ImageNet's usual one: a window of 8% to 100% of the area, of a ratio from 3/4 to 4/3, brought to
    size x size, and mirrored with probability 1/2.
    """

    def __init__(self, data: StreamedData, device: torch.device):
        self.files, self.size, self.workers, self.flip = data.train, data.size, data.workers, data.flip
        self.labels = data.train.labels.to(device)
        self.mean, self.std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.files)

    def plan(self, seed: int, trial: str, phase: str, epoch: int) -> tuple[Tensor, Tensor]:
        """The order of the samples in an epoch and the seed of each position's view, both (n,) int64.

        A pure function of its arguments, drawn on the CPU.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, trial, phase, epoch, "views"))
        order = torch.randperm(len(self), generator=generator)
        return order, torch.randint(2**62, (len(self),), generator=generator)

    def batches(self, plan: tuple[Tensor, Tensor], batch_size: int) -> Iterator[Batch]:
        """The batches of an epoch, in the plan's order; the last, smaller one is kept.

        Raises DataError where an image cannot be read.
        """
        order, device = plan[0], self.labels.device
        pixels = read(self.files, _train_transform(self.size, self.flip), plan, batch_size, self.workers, device)
        for images, index in zip(pixels, order.to(device).split(batch_size), strict=True):
            yield Batch(normalise(images, self.mean, self.std), self.labels[index], index, None)


class StreamedImages:
    """A test set in files, in the place of EvalImages: the shorter side brought to 8/7 of size, the middle cut out."""

    def __init__(self, data: StreamedData, device: torch.device):
        self.files, self.size, self.workers = data.test, data.size, data.workers
        self.labels = data.test.labels.to(device)
        self.mean, self.std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, batch_size: int, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of a part of the samples, in order; of large images fewer than `batch_size` at once.

        Raises DataError where an image cannot be read.
        """
        batch_size = max(1, min(batch_size, TEST_PIXELS // self.size**2))
        order = torch.arange(len(self))[part]
        pixels = read(self.files, _test_transform(self.size), (order, order), batch_size, self.workers,
                      self.labels.device)
        for images, labels in zip(pixels, self.labels[part].split(batch_size), strict=True):
            yield normalise(images, self.mean, self.std), labels


def _train_transform(size, flip):
    from torchvision.transforms import v2  # its import takes as long as PyTorch's: only who needs it waits

    mirrored = [v2.RandomHorizontalFlip()] if flip else []
    return v2.Compose([v2.RandomResizedCrop(size), *mirrored, v2.PILToTensor()])


def _test_transform(size):
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()])


def problems(files: Files, workers: int) -> Iterator[str | None]:
    """Decode every image once, in order: what is wrong with it, in words, or None."""
    order = torch.arange(len(files))
    for found in _started(_loader(_Check(files), (order, order), 32, workers, list)):
        yield from found


def read(files: Files, transform: Callable[[Image.Image], Tensor], plan: tuple[Tensor, Tensor], batch_size: int,
         workers: int, device: torch.device) -> Iterator[Tensor]:
    """Batches of transformed images on the device: uint8 (B, 3, height, width).

    transform: a torchvision transform; it draws from PyTorch's generator, seeded for each image
    plan: (places, seeds), each (n,) int64
    Raises DataError where an image cannot be read, or a worker is killed.
    """
    loader = _loader(_Images(files, transform), plan, batch_size, workers, _stack, pin=device.type == "cuda")
    try:
        for images in _started(loader):
            if isinstance(images, str):
                raise DataError(f"{images}: mend or remove it, or give --skip_unreadable, which reads every image once "
                                "at the start, and counts and leaves out those that cannot be read")
            yield images.to(device, non_blocking=True)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(f"a process that reads images has died ({' '.join(str(error).split())}): if memory is short, "
                        "give a smaller --num_workers") from None


def _loader(images, plan, batch_size, workers, collate, pin=False):
    batches = _Batches(plan, batch_size)
    # More processes than processors, or than batches, would only wait.
    workers = min(workers, len(os.sched_getaffinity(0)), len(batches))
    # A generator of its own: the loader would draw from the one that dropout uses.
    return DataLoader(images, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=pin,
                      generator=torch.Generator())


def _started(loader):
    """iter(loader), whose workers are deaf to signals that a whole process group gets: they are the main process's,
    and it lets its workers end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        return iter(loader)  # the workers are forked here, and keep the mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Batches:
    """A plan's (place, seed) pairs in lists of `batch_size`, the last one shorter."""

    def __init__(self, plan, batch_size):
        self.plan, self.batch_size = plan, batch_size

    def __iter__(self):
        for places, seeds in zip(*(part.split(self.batch_size) for part in self.plan), strict=True):
            yield list(zip(places.tolist(), seeds.tolist(), strict=True))

    def __len__(self):
        return -(-len(self.plan[0]) // self.batch_size)


class _Images:
    """The transformed image of (place, seed); where it cannot be read, what is wrong, in words."""

    def __init__(self, files, transform):
        self.files, self.transform = files, transform

    def __getitem__(self, place_and_seed):
        place, seed = place_and_seed
        try:
            image = self.files.image(place)
        except DataError as error:
            return str(error)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(image)


class _Check:
    """None for an image that can be read, else what is wrong, in words."""

    def __init__(self, files):
        self.files = files

    def __getitem__(self, place_and_seed):
        try:
            self.files.image(place_and_seed[0])
        except DataError as error:
            return str(error)


def _stack(images):
    """The batch; where an image of it could not be read, the first one's problem."""
    return next((image for image in images if isinstance(image, str)), None) or torch.stack(images)
