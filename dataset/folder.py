"""Any folder of class folders: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or DIR/test/CLASS/*.jpg).

The layout is that of torchvision's ImageFolder, and so is the numbering: classes in the order of their folders'
names, images in the order of theirs, folders within a class folder included. Images are streamed (_stream.py).
"""
import os
from collections.abc import Iterator

import numpy as np
import torch

from dataset._base import Data, DataError
from dataset._image import EXTENSIONS
from dataset._stream import Files, problems
from helper.util.progress import progress

# ImageNet's, which its pretrained networks expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE, SIZE_LIMIT = 224, 2048
SETTINGS = ("image_size", "num_workers", "skip_unreadable")
# Files named in a message, at most.
NAMED = 3


def load(root: str, image_size: int | None = None, num_workers: int = 0, skip_unreadable: bool = False,
         name: str = "folder", held_out: tuple[str, ...] = ("val", "test")) -> Data:
    """The data set in `root`, streamed.

    image_size: height and width of what a network sees, 224 if not given; num_workers: processes that read images
    skip_unreadable: read every image once, and leave out those that cannot be read, instead of raising later
    held_out: the folder of the test images is the first of these names that is there
    Raises DataError where a folder is missing, empty or cannot be read, or the classes of the two parts differ.
    """
    size = image_size or SIZE
    if size > SIZE_LIMIT:
        raise DataError(f"--image_size {size} is too large: give at most {SIZE_LIMIT}")
    train_folder, test_folder = os.path.join(root, "train"), _held_out(root, held_out)
    print(f"reading the file names in {root}", flush=True)
    classes, train = _scan(train_folder, size, num_workers)
    found, test = _scan(test_folder, size, num_workers)
    _compare(classes, found, train_folder, test_folder)
    if skip_unreadable:
        train, test = _readable(train), _readable(test)
    for part in (train, test):
        _no_class_empty(part, classes)
    return Data(name, classes, MEAN, STD, True, train, test)


def _held_out(root, names):
    """The folder of the test images. Raises DataError where it, DIR/train or DIR itself is missing."""
    layout = f"--data_dir takes a folder that holds train/CLASS and {' or '.join(f'{name}/CLASS' for name in names)}"
    for folder in (root, os.path.join(root, "train")):
        _must_be_folder(folder, layout)
    for name in names:
        if os.path.lexists(os.path.join(root, name)):
            _must_be_folder(os.path.join(root, name), layout)
            return os.path.join(root, name)
    raise DataError(f"{os.path.join(root, names[0])} does not exist: {layout}")


def _must_be_folder(path, layout):
    if not os.path.isdir(path):
        raise DataError(f"{path} {'is a file' if os.path.lexists(path) else 'does not exist'}: {layout}")


def _scan(folder: str, size: int, workers: int) -> tuple[tuple[str, ...], Files]:
    """The classes' names, and the images, of a folder of class folders; a class may still be without images."""
    _, folders, files = next(os.walk(folder, onerror=_refuse))
    classes = tuple(sorted(name for name in folders if not name.startswith(".")))  # .git and the like are no classes
    if not classes:
        loose = sum(name.lower().endswith(EXTENSIONS) for name in files)
        holds = f"{loose} images but no class folder" if loose else "no class folder"
        raise DataError(f"{folder} holds {holds}: put the images of each class into {os.path.join(folder, 'CLASS')}")
    samples = [(os.fsencode(os.path.relpath(path, folder)), label)
               for label, name in enumerate(classes) for path in _images(os.path.join(folder, name))]
    names = np.array([name for name, _ in samples], dtype=np.bytes_)
    return classes, Files(folder, names, torch.tensor([c for _, c in samples], dtype=torch.int64), size, workers)


def _images(folder: str) -> Iterator[str]:
    for place, _, files in sorted(os.walk(folder, onerror=_refuse, followlinks=True)):
        yield from (os.path.join(place, name) for name in sorted(files) if name.lower().endswith(EXTENSIONS))


def _refuse(error: OSError) -> None:
    """For os.walk, which by default silently leaves out what it cannot read."""
    raise DataError(f"{error.filename} cannot be read ({error.strerror}): make it readable, or remove it") from None


def _compare(classes, found, train, held):
    """Raise DataError unless both parts have the same class folders, two or more."""
    for names, here, there in ((set(classes) - set(found), train, held), (set(found) - set(classes), held, train)):
        if names:
            raise DataError(f"{there} lacks {_listed('class folder', sorted(names))} that {here} has: both need the "
                            "same class folders")
    if len(classes) < 2:
        raise DataError(f"{train} holds one class folder, {classes[0]}: two or more are needed")


def _no_class_empty(files, classes):
    counts = torch.bincount(files.labels, minlength=len(classes))
    empty = [classes[c] for c in (counts == 0).nonzero().squeeze(1).tolist()]
    if empty:
        raise DataError(f"{files.root} has no image in {_listed('class folder', empty)}: put images there, or remove "
                        "the folder from both parts")


def _readable(files):
    """The files that can be read; prints how many cannot, and names some."""
    with progress(f"checking the images of {files.root}", len(files), unit=" images") as bar:
        found = []
        for problem in problems(files):
            found.append(problem)
            bar.update()
    bad = [problem for problem in found if problem is not None]
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        print(f"note      {len(bad)} of {len(files):,} images are left out: {'; '.join(bad[:NAMED])}{more}", flush=True)
    return files.take(torch.tensor([i for i, problem in enumerate(found) if problem is None], dtype=torch.int64))


def _listed(what, names):
    """'the class folder a', 'the 5 class folders a, b, c, ...'."""
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"the {what} {shown}" if len(names) == 1 else f"the {len(names)} {what}s {shown}"
