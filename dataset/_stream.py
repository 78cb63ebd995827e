"""Images that stay in their files: decoded by worker processes, as the loop needs them.

Each view has a seed of its own, from the epoch's plan: it is a pure function of (seed, trial, phase, epoch, image),
whatever the number of workers. Workers hand over uint8 pixels, a quarter of the bytes of floats, and the device
normalises them, bit-identical to torchvision's ToTensor and Normalize.
"""
from __future__ import annotations

import atexit
import contextlib
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from dataset._base import Data, DataError
from dataset._image import decode
from dataset.views import Batch, OnDevice
from helper.util.errors import printable
from helper.util.files import open_regular
from helper.util.seeding import derive_seed

# Pixels in a batch of the test, at most: those of 64 images of 224x224.
TEST_PIXELS = 64 * 224 * 224


@dataclass(frozen=True)
class Files:
    """Samples in files.

    root: a folder; names: (n,) bytes, the files' paths in it (an array, whose memory worker processes share, unlike
        a list's); labels: (n,) int64 in [0, classes)
    size: height and width of what a network sees
    workers: processes that read images; 0: the main one
    """

    root: str
    names: np.ndarray
    labels: Tensor
    size: int = 224
    workers: int = 0

    countable = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Files:
        return replace(self, names=self.names[index.numpy()], labels=self.labels[index])

    def relabelled(self, labels: Tensor) -> Files:
        return replace(self, labels=labels)

    def stamp(self) -> bytes:
        """A digest of the files' names, labels, sizes and times of change."""
        digest = hashlib.sha256(b"\0".join(self.names.tolist()) + self.labels.numpy().tobytes())
        for i in range(len(self)):
            found = os.stat(self.path(i))
            digest.update(f"{found.st_size} {found.st_mtime_ns} ".encode())
        return digest.digest()

    def train_data(self, data: Data, device: torch.device, strong: bool) -> StreamedViews:
        if strong:
            raise DataError(f"{data.name} is read from its files as needed, and a second view of each image is made of "
                            "data sets in memory alone: take a method that reads one view")
        return StreamedViews(self, data, device)

    def eval_data(self, data: Data, device: torch.device) -> StreamedImages:
        return StreamedImages(self, data, device)

    def path(self, i: int) -> str:
        """The path of an image."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names[i])))

    def image(self, i: int) -> Image.Image:
        """The decoded image, RGB. Raises DataError, which names the file, where it cannot be read."""
        try:
            with open_regular(self.path(i)) as file:
                return decode(file)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
            reason = printable(getattr(error, "strerror", None) or error) or type(error).__name__
            raise DataError(f"{self.path(i)} cannot be read ({reason})") from None


class _Streamed(OnDevice):
    """Files on their way to a device."""

    def __init__(self, files: Files, data: Data, device: torch.device):
        super().__init__(files, data, device)
        self.files, self.flip = files, data.flip


class StreamedViews(_Streamed):
    """Files as TrainData.

    A view is ImageNet's usual one: a window of 8% to 100% of the area, of a ratio from 3/4 to 4/3, brought to
    size x size, and mirrored with probability 1/2.
    """

    def plan(self, seed: int, trial: str, phase: str, epoch: int) -> tuple[Tensor, Tensor]:
        """The order of the samples in an epoch and the seed of each position's view, both (n,) int64."""
        generator = torch.Generator().manual_seed(derive_seed(seed, trial, phase, epoch, "views"))
        order = torch.randperm(len(self), generator=generator)
        return order, torch.randint(2**62, (len(self),), generator=generator)

    def batches(self, plan: tuple[Tensor, ...], batch_size: int) -> Generator[Batch, None, None]:
        """See TrainData. Raises DataError where an image cannot be read."""
        order, device = plan[0], self.labels.device
        pixels = read(self.files, _train_transform(self.files.size, self.flip), plan, batch_size, device)
        for images, index in zip(pixels, order.to(device).split(batch_size), strict=True):
            yield Batch(self.normalise(images), self.labels[index], index, None)


class StreamedImages(_Streamed):
    """Files as EvalData: the shorter side brought to 8/7 of size, the middle cut out."""

    def batches(self, batch_size: int, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """See EvalData; of large images fewer than `batch_size` at once. Raises DataError where one cannot be read."""
        batch_size = max(1, min(batch_size, TEST_PIXELS // self.files.size**2))
        order = torch.arange(len(self))[part]
        pixels = read(self.files, _test_transform(self.files.size), (order, order), batch_size, self.labels.device)
        for images, labels in zip(pixels, self.labels[part].split(batch_size), strict=True):
            yield self.normalise(images), labels


def _train_transform(size, flip):
    from torchvision.transforms import v2  # imported late: it takes as long as PyTorch

    mirrored = [v2.RandomHorizontalFlip()] if flip else []
    return v2.Compose([v2.RandomResizedCrop(size), *mirrored, v2.PILToTensor()])


def _test_transform(size):
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()])


def problems(files: Files) -> Iterator[str | None]:
    """Decode every image once, in order: what is wrong with it, in words, or None."""
    order = torch.arange(len(files))
    with _started(_loader(_Images(files, None), (order, order), 32, list)) as batches:
        for found in batches:
            yield from found


def read(files: Files, transform: Callable[[Image.Image], Tensor], plan: tuple[Tensor, ...], batch_size: int,
         device: torch.device) -> Iterator[Tensor]:
    """Batches of transformed images on the device: uint8 (B, 3, height, width).

    transform: a torchvision transform; it draws from PyTorch's generator, seeded for each image
    plan: (places, seeds), each (n,) int64
    Raises DataError where an image cannot be read, or a worker is killed.
    """
    loader = _loader(_Images(files, transform), plan, batch_size, _stack, pin=device.type == "cuda")
    try:
        with _started(loader) as batches:
            for images in batches:
                if isinstance(images, str):
                    raise DataError(f"{images}: repair or remove it, or give --skip_unreadable, which reads every "
                                    "image once at the start, and counts and leaves out those that cannot be read")
                yield images.to(device, non_blocking=True)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(f"a process that reads images has died ({printable(str(error).splitlines()[-1])}): if "
                        "memory is short, also of /dev/shm, give a smaller --num_workers, or 0") from None


def _loader(images, plan, batch_size, collate, pin=False):
    # Lists of (place, seed), the last one shorter.
    batches = (list(zip(places.tolist(), seeds.tolist(), strict=True)) for places, seeds in
               zip(*(part.split(batch_size) for part in plan), strict=True))
    # More processes than processors, or than batches, would only wait.
    workers = min(images.files.workers, len(os.sched_getaffinity(0)), -(-len(plan[0]) // batch_size))
    if workers > 0:
        try:
            multiprocessing.Lock()  # as the DataLoader does, which shows a traceback where it cannot
        except OSError as error:
            raise DataError(f"/dev/shm: {error.strerror}, and processes that read images share memory there: give "
                            "--num_workers 0") from None
    # A generator of its own: the loader would draw from the one that dropout uses.
    return DataLoader(images, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=pin,
                      generator=torch.Generator())


@contextlib.contextmanager
def _started(loader):
    """iter(loader), whose workers ignore signals sent to the whole process group: the main process handles them and
    ends its workers, at the latest at its own end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        batches = iter(loader)  # the workers are forked here, and keep the mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if loader.num_workers == 0:
        yield batches
        return
    # An exception's traceback may keep the iterator until Python exits, which waits for workers: they ignore SIGTERM.
    end = batches._shutdown_workers
    atexit.register(end)
    try:
        yield batches
    finally:
        end()
        atexit.unregister(end)


class _Images:
    """The transformed image of (place, seed); where that fails, what is wrong, in words: an exception of a worker
    process would reach the main one as a traceback. Without a transform None for an image that can be read."""

    def __init__(self, files: Files, transform: Callable[[Image.Image], Tensor] | None):
        self.files, self.transform = files, transform

    def __getitem__(self, place_and_seed: tuple[int, int]) -> Tensor | str | None:
        place, seed = place_and_seed
        try:
            image = self.files.image(place)
            if self.transform is None:
                return None
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return self.transform(image)
        except DataError as error:
            return str(error)
        except Exception as error:
            return f"{self.files.path(place)} cannot be transformed ({printable(error) or type(error).__name__})"


def _stack(images):
    """The batch; where an image of it could not be read, the first one's problem."""
    problem = next((image for image in images if isinstance(image, str)), None)
    if problem is None and get_worker_info() is not None:
        # Here an error reaches the main process; in the thread that hands a batch over it would be waited for.
        return torch.stack(images).share_memory_()
    return problem or torch.stack(images)
