"""ImageNet, and any folder of class folders: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or DIR/test).

The layout is that of torchvision's ImageFolder, and so is the numbering: classes in the order of their folders'
names, images in the order of theirs, folders within a class folder included. Images are streamed (_stream.py).
"""
import os
from collections.abc import Callable

import numpy as np
import torch

from dataset._base import DataError
from dataset._stream import Files, StreamedData, problems
from helper.util.progress import progress

# ImageNet's, which its pretrained networks expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 224
SETTINGS = ("image_size", "num_workers", "skip_unreadable")
SPLITS = {"imagenet": ("val",), "folder": ("val", "test")}
# Files named in a message, at most.
NAMED = 3


def load(name: str) -> Callable[..., StreamedData]:
    """The loader of `name`, "imagenet" or "folder": (root, image_size, num_workers, skip_unreadable) -> StreamedData.

    It raises DataError where a folder is missing or empty, or the classes of the two parts differ.
    """
    def load(root: str, image_size: int | None = None, num_workers: int = 0, skip_unreadable: bool = False):
        held = _held_out(root, SPLITS[name])
        print(f"reading the file names in {root}", flush=True)
        classes, train = _scan(os.path.join(root, "train"))
        found, test = _scan(held)
        _compare(classes, found, os.path.join(root, "train"), held)
        if skip_unreadable:
            train, test = (_readable(part, num_workers) for part in (train, test))
        for part in (train, test):
            _no_class_empty(part, classes)
        return StreamedData(name, classes, MEAN, STD, True, train, test, size=image_size or SIZE, workers=num_workers)

    return load


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


def _scan(folder):
    """(the classes' names, Files) of a folder of class folders; a class may still be without images."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    # Hidden folders (.ipynb_checkpoints, .git) are no classes.
    classes = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))
    if not classes:
        loose = sum(e.name.lower().endswith(IMG_EXTENSIONS) for e in os.scandir(folder))
        holds = f"{loose} images but no class folder" if loose else "no class folder"
        raise DataError(f"{folder} holds {holds}: put the images of each class into {os.path.join(folder, 'CLASS')}")
    places = {name: i for i, name in enumerate(classes)}
    samples = make_dataset(folder, places, IMG_EXTENSIONS, allow_empty=True)
    names = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in samples], dtype=np.bytes_)
    return classes, Files(folder, names, torch.tensor([label for _, label in samples], dtype=torch.int64))


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


def _readable(files, workers):
    """The files that can be read; says how many cannot, and names some."""
    bar = progress(f"checking the images of {files.root}", len(files), unit=" images")
    bad, good = [], torch.ones(len(files), dtype=torch.bool)
    for i, problem in enumerate(problems(files, workers)):
        if problem is not None:
            good[i] = False
            bad.append(problem)
        bar.update()
    bar.close()
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        print(f"note      {len(bad)} of {len(files):,} images are left out: {'; '.join(bad[:NAMED])}{more}", flush=True)
    return files.take(good.nonzero().squeeze(1))


def _listed(what, names):
    """'the class folder a', 'the 5 class folders a, b, c, ...'."""
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"the {what} {shown}" if len(names) == 1 else f"the {len(names)} {what}s {shown}"
