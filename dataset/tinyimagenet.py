"""Tiny-ImageNet (Le and Yang 2015): 200 classes of 500 training and 50 validation images of 64x64 pixels.

As it is distributed: the folder tiny-imagenet-200, or the archive of it, from which it is read as well. Its
validation images lie in one flat folder, and val/val_annotations.txt says the class of each. Read by a
loader of class folders they would all be one class; here the annotations are read, and each is checked. Classes
are numbered in the order of wnids.txt, which is not the alphabetical one of such loaders: a teacher that was trained
with another numbering tests at chance, which the run's first lines show.

The images are decoded once and kept beside the source, as one file, whose key covers the source's names and contents.
"""
import hashlib
import io
import os
import pickle
import zipfile

import torch
from PIL import Image

from dataset._base import Data, DataError, Split
from dataset._download import fetch, held
from helper.util.files import whole
from helper.util.progress import progress

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TITLE = "Tiny-ImageNet"
# Bytes; the archive has 248 MB.
LIMIT = 300 * 10**6
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER, ARCHIVE, DECODED = "tiny-imagenet-200", "tiny-imagenet-200.zip", "tiny-imagenet-200.decoded.pt"
# What mdistiller normalises Tiny-ImageNet by. The standard deviations are smaller than those of all pixels.
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2302, 0.2265, 0.2262)
SIZE = 64
SETTINGS = ("skip_unreadable",)
FORMAT = 1


def load(root: str, skip_unreadable: bool = False) -> Data:
    """Tiny-ImageNet from `root`/tiny-imagenet-200 or its archive there, which is fetched if both are missing.

    skip_unreadable: leave out images that cannot be read, and say how many, instead of raising
    Raises DataError where the data is missing and cannot be fetched, or is not what it should be.
    """
    source = _source(root)
    if source is None:
        with held(root, TITLE):
            fetch(TITLE, URL, root, MD5, LIMIT, FOLDER)
            source = _source(root)
    classes, parts = _listing(source)
    key = source.key([name for part in parts for name, _ in part])
    splits = _kept(root, key)
    if splits is None:
        with held(root, TITLE):
            splits = _kept(root, key) or _decode(source, parts, root, key, skip_unreadable)
    for split in splits:
        for c in (torch.bincount(split.labels, minlength=len(classes)) == 0).nonzero()[:1, 0]:
            raise DataError(f"{source} has no readable image of the class {classes[c]}: {_AGAIN}")
    return Data("tinyimagenet", classes, MEAN, STD, True, *splits)


_AGAIN = f"move it away and unpack {ARCHIVE} again, or let it be fetched"


class _Folder:
    """The unpacked files."""

    def __init__(self, path):
        self.path = path

    def __str__(self):
        return self.path

    def names(self):
        """The files' paths in tiny-imagenet-200, sorted."""
        names = [name for name in os.listdir(self.path) if os.path.isfile(os.path.join(self.path, name))]
        for top in ("train", "val"):  # test/ has no labels
            for folder, _, files in os.walk(os.path.join(self.path, top)):
                prefix = os.path.relpath(folder, self.path).replace(os.sep, "/")
                names += [f"{prefix}/{name}" for name in files]
        return sorted(names)

    def read(self, name):
        with open(os.path.join(self.path, name), "rb") as file:
            return file.read()

    def key(self, names):
        stats = (os.stat(os.path.join(self.path, name)) for name in names)
        return _digest(names, [(stat.st_size, stat.st_mtime_ns) for stat in stats])


class _Archive:
    """The archive, read as it is."""

    def __init__(self, path):
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path} cannot be read ({error}): remove it, and the same command fetches it") from None
        self.path = path

    def __str__(self):
        return self.path

    def names(self):
        start = f"{FOLDER}/"
        return sorted(name.removeprefix(start) for name in self.zip.namelist()
                      if name.startswith(start) and not name.endswith("/"))

    def read(self, name):
        return self.zip.read(f"{FOLDER}/{name}")

    def key(self, names):
        return _digest(names, [self.zip.getinfo(f"{FOLDER}/{name}").CRC for name in names])


def _digest(names, contents):
    return hashlib.sha256(repr((FORMAT, names, contents)).encode()).hexdigest()


def _source(root):
    """Where the data is, in or at the folder `root`; None where it is not."""
    if os.path.lexists(root) and not os.path.isdir(root):
        raise DataError(f"{root} is a file: give --data_dir a folder")
    for folder in (os.path.join(root, FOLDER), root):
        if os.path.isfile(folder) or os.path.isfile(os.path.join(folder, "wnids.txt")):
            break
        if folder != root and os.path.isdir(folder):
            raise DataError(f"{folder} has no wnids.txt: {_AGAIN}")
    else:
        archive = os.path.join(root, ARCHIVE)
        return _Archive(archive) if os.path.lexists(archive) else None
    if os.path.isfile(folder):
        raise DataError(f"{folder} is a file where a folder should be: {_AGAIN}")
    return _Folder(folder)


def _listing(source):
    """(the classes, (training images, validation images)), each image a pair of its file's name and its label."""
    names = source.names()
    present = set(names)
    for name in ("wnids.txt", "val/val_annotations.txt"):
        if name not in present:
            raise DataError(f"{source} has no {name}: {_AGAIN}")
    classes = tuple(source.read("wnids.txt").decode(errors="replace").split())
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(f"wnids.txt of {source} does not name two or more classes, each once: {_AGAIN}")
    label = {wnid: i for i, wnid in enumerate(classes)}

    train = []
    for name in names:
        folder, _, rest = name.removeprefix("train/").partition("/")
        if not name.startswith("train/") or not rest.startswith("images/"):
            continue
        if folder not in label:
            raise DataError(f"{source} holds {name}, and wnids.txt names no class {folder}: {_AGAIN}")
        train.append((name, label[folder]))
    for missing in sorted(set(range(len(classes))) - {c for _, c in train})[:1]:
        raise DataError(f"{source} has no image in train/{classes[missing]}/images: {_AGAIN}")
    return classes, (sorted(train, key=lambda sample: sample[1]), _validation(source, names, present, label))


def _validation(source, names, present, label):
    """The validation images, in the order of the annotations."""
    where = f"val/val_annotations.txt of {source}"
    found = {}
    for line in source.read("val/val_annotations.txt").decode(errors="replace").splitlines():
        file, wnid = [*line.split("\t"), "", ""][:2]
        name = f"val/images/{file}"
        if name not in present:
            raise DataError(f"{where} names {file or 'nothing'!r}, which is not in val/images: {_AGAIN}")
        if wnid not in label:
            raise DataError(f"{where} gives {file} the class {wnid!r}, which wnids.txt does not name: {_AGAIN}")
        if name in found:
            raise DataError(f"{where} names {file} twice: {_AGAIN}")
        found[name] = label[wnid]
    stray = [name for name in names if name.startswith("val/images/") and name not in found]
    if stray:
        raise DataError(f"{where} says nothing of {len(stray)} images, such as {stray[0]}: {_AGAIN}")
    for wnid, c in label.items():
        if c not in found.values():
            raise DataError(f"{where} names no image of the class {wnid}: {_AGAIN}")
    return list(found.items())


def _kept(root, key):
    """The decoded training and validation sets of an earlier run; None where they are not those of `key`."""
    path = os.path.join(root, DECODED)
    if not os.path.exists(path):
        return None
    try:
        held = torch.load(path, mmap=True, weights_only=True)
        return tuple(Split(*part) for part in held["splits"]) if held["key"] == key else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
        print(f"{path} is damaged: decoding the images again", flush=True)
        return None


def _decode(source, parts, root, key, skip):
    """Decode the images of both parts to Splits, and keep them in a file where all can be read."""
    bar, bad, splits = progress("decoding Tiny-ImageNet", sum(map(len, parts)), unit=" images"), [], []
    print(f"decoding {bar.total:,} images of {source}, once", flush=True)
    for part in parts:
        pixels, good = torch.empty(len(part), 3, SIZE, SIZE, dtype=torch.uint8), []
        for i, (name, _) in enumerate(part):
            try:
                pixels[i] = _pixels(source.read(name))
                good.append(i)
            except Exception as error:  # Pillow and zipfile raise many kinds
                bad.append(f"{name} ({' '.join(str(error).split()) or type(error).__name__})")
            bar.update()
        split = Split(pixels, torch.tensor([label for _, label in part]))
        splits.append(split if len(good) == len(part) else split.take(torch.tensor(good, dtype=torch.int64)))
    bar.close()
    if bad:
        said = f"{len(bad)} of {bar.total:,} images of {source} cannot be read: {', '.join(bad[:3])}"
        said += f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        if not skip:
            raise DataError(f"{said}; mend or remove them, or leave them out by --skip_unreadable")
        print(f"note      {said}; left out", flush=True)
    else:
        _keep(os.path.join(root, DECODED), {"key": key, "splits": [(split.images, split.labels) for split in splits]})
    return tuple(splits)


def _pixels(content):
    """(3, 64, 64) uint8 of a JPEG file's bytes; some images are grey."""
    with Image.open(io.BytesIO(content)) as image:
        if image.size != (SIZE, SIZE):
            raise ValueError(f"it has {image.width}x{image.height} pixels, not {SIZE}x{SIZE}")
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(SIZE, SIZE, 3).permute(2, 0, 1)


def _keep(path, content):
    try:
        with whole(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        print(f"note      the decoded images are not kept ({error}): they will be decoded each time", flush=True)
