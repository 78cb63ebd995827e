"""Tiny-ImageNet (Le and Yang 2015): 200 classes of 500 training and 50 validation images of 64x64 pixels.

As it is distributed: the folder tiny-imagenet-200, or the archive of it, from which it is read as well. Its
validation images lie in one flat folder, and val/val_annotations.txt gives the class of each. Read by a
loader of class folders they would all be one class; here the annotations are read, and each is checked. Classes
are numbered in the order of wnids.txt, which is not the alphabetical one of such loaders: a teacher that was trained
with another numbering tests at chance, which the run's first lines show.

The images are decoded once and kept beside the source, as one file, whose key covers the source's names and contents.
"""
import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from dataset._base import Data, DataError, Split
from dataset._download import fetch, held
from dataset._image import decode
from helper.util.errors import printable
from helper.util.files import open_regular, whole
from helper.util.progress import progress

TITLE = "Tiny-ImageNet"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
# Bytes of the archive, which has 248 MB, and of a file in it, at most.
LIMIT, FILE_LIMIT = 300 * 10**6, 10**7
FOLDER, ARCHIVE, DECODED = "tiny-imagenet-200", "tiny-imagenet-200.zip", "tiny-imagenet-200.decoded.pt"
# What mdistiller normalises Tiny-ImageNet by. The standard deviations are smaller than those of all pixels.
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2302, 0.2265, 0.2262)
SIZE = 64
SETTINGS = ("skip_unreadable",)
FORMAT = 1
AGAIN = f"move it away and unpack {ARCHIVE} again, or let it be fetched"


def load(root: str, skip_unreadable: bool = False) -> Data:
    """Tiny-ImageNet from `root`/tiny-imagenet-200 or its archive there, which is fetched if both are missing.

    skip_unreadable: leave out images that cannot be read, and print how many, instead of raising
    Raises DataError where the data is missing and cannot be fetched, or is not what it should be.
    """
    source = _source(root)
    if source is None:
        with held(root, TITLE):
            fetch(TITLE, URL, root, MD5, LIMIT, FOLDER)
            source = _archive(os.path.join(root, ARCHIVE))
    classes, parts = _listing(source)
    names = [name for part in parts for name, _ in part]
    key = hashlib.sha256(repr((FORMAT, names, [source.version(name) for name in names])).encode()).hexdigest()
    splits = _kept(root, key)
    if splits is None:
        with held(root, TITLE):
            splits = _kept(root, key) or _decode(source, parts, root, key, skip_unreadable)
    for split in splits:
        for c in (torch.bincount(split.labels, minlength=len(classes)) == 0).nonzero()[:1, 0]:
            raise DataError(f"{source.path} has no readable image of the class {classes[c]}: {AGAIN}")
    return Data("tinyimagenet", classes, MEAN, STD, True, *splits)


class _Source(NamedTuple):
    """Where the files are.

    names: of all of them, sorted, as paths in tiny-imagenet-200
    read: the content of a file, by its name; raises what the file system or zipfile does
    version: changes when the file of a name does
    """

    path: str
    names: list[str]
    read: Callable[[str], bytes]
    version: Callable[[str], object]


def _folder(path: str) -> _Source:
    """The unpacked files."""
    names = []
    for top in ("train", "val"):  # test/ has no labels
        for folder, _, files in os.walk(os.path.join(path, top), onerror=_refuse):
            inside = os.path.relpath(folder, path)
            names += [f"{inside}/{name}" for name in files]

    def read(name):
        with open_regular(os.path.join(path, name)) as file:
            return file.read(FILE_LIMIT)

    def version(name):
        found = os.stat(os.path.join(path, name))
        return found.st_size, found.st_mtime_ns

    return _Source(path, sorted(names), read, version)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # which _listing names
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): {AGAIN}") from None


def _archive(path: str) -> _Source:
    """The archive, read as it is."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises what the bytes happen to provoke
        raise DataError(f"{path} cannot be read ({printable(error)}): remove it, and the same command fetches it "
                        "again") from None
    start = f"{FOLDER}/"
    files = {file.filename.removeprefix(start): file for file in archive.infolist()
             if file.filename.startswith(start) and not file.is_dir()}

    def read(name):
        if files[name].file_size > FILE_LIMIT:
            raise ValueError(f"it unpacks to {files[name].file_size:,} bytes")
        return archive.read(files[name])

    return _Source(path, sorted(files), read, lambda name: files[name].CRC)


def _source(root: str) -> _Source | None:
    """Where the data is, in or at the folder `root`; None where it is not."""
    if os.path.lexists(root) and not os.path.isdir(root):
        raise DataError(f"{root} is a file: give --data_dir a folder")
    inner = os.path.join(root, FOLDER)
    if os.path.isfile(inner):
        raise DataError(f"{inner} is a file where a folder should be: {AGAIN}")
    for folder in (inner, root):
        if os.path.isfile(os.path.join(folder, "wnids.txt")):
            return _folder(folder)
    if os.path.isdir(inner):
        raise DataError(f"{inner} has no wnids.txt: {AGAIN}")
    archive = os.path.join(root, ARCHIVE)
    return _archive(archive) if os.path.lexists(archive) else None


def _text(source: _Source, name: str) -> str:
    try:
        return source.read(name).decode(errors="replace")
    except (FileNotFoundError, KeyError):
        raise DataError(f"{source.path} has no {name}: {AGAIN}") from None
    except Exception as error:  # an encrypted archive, a damaged one, ...
        raise DataError(f"{name} of {source.path} cannot be read ({printable(error)}): {AGAIN}") from None


def _listing(source: _Source) -> tuple[tuple[str, ...], tuple[list, list]]:
    """(the classes, (training images, validation images)), each image a pair of its file's name and its label."""
    classes = tuple(_text(source, "wnids.txt").split())
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(f"wnids.txt of {source.path} does not name two or more classes, each once: {AGAIN}")
    label = {wnid: i for i, wnid in enumerate(classes)}
    train = []
    for name in source.names:
        top, folder, kind, *_ = [*name.split("/"), "", ""]
        if (top, kind) == ("train", "images"):
            if folder not in label:
                raise DataError(f"{source.path} holds {name}, and wnids.txt names no class {folder}: {AGAIN}")
            train.append((name, label[folder]))
    for missing in sorted(set(label.values()) - {c for _, c in train})[:1]:
        raise DataError(f"{source.path} has no image in train/{classes[missing]}/images: {AGAIN}")
    return classes, (sorted(train, key=lambda sample: sample[1]), _validation(source, label))


def _validation(source: _Source, label: dict[str, int]) -> list[tuple[str, int]]:
    """The validation images, in the order of the annotations."""
    where = f"val/val_annotations.txt of {source.path}"
    present = {name for name in source.names if name.startswith("val/images/")}
    found: dict[str, int] = {}
    for line in _text(source, "val/val_annotations.txt").splitlines():
        file, wnid = [*line.split("\t"), "", ""][:2]
        name = f"val/images/{file}"
        if name not in present:
            raise DataError(f"{where} names {file or 'nothing'!r}, which is not in val/images: {AGAIN}")
        if wnid not in label:
            raise DataError(f"{where} gives {file} the class {wnid!r}, which wnids.txt does not name: {AGAIN}")
        if name in found:
            raise DataError(f"{where} names {file} twice: {AGAIN}")
        found[name] = label[wnid]
    stray = sorted(present - set(found))
    if stray:
        raise DataError(f"{where} does not name {len(stray)} images, such as {stray[0]}: {AGAIN}")
    for wnid, c in label.items():
        if c not in found.values():
            raise DataError(f"{where} names no image of the class {wnid}: {AGAIN}")
    return list(found.items())


def _kept(root: str, key: str) -> tuple[Split, Split] | None:
    """The decoded training and validation sets of an earlier run; None where they are not those of `key`."""
    path = os.path.join(root, DECODED)
    if not os.path.exists(path):
        return None
    try:
        held = torch.load(path, mmap=True, weights_only=True)
        if held["key"] != key:
            return None
        train, test = held["splits"]
        return Split(*train), Split(*test)
    except Exception:  # the readers behind torch.load raise what the bytes happen to provoke
        print(f"{path} is damaged: decoding the images again", flush=True)
        return None


def _decode(source: _Source, parts: tuple[list, list], root: str, key: str, skip: bool) -> tuple[Split, Split]:
    """Decode the images of both parts, and keep them in a file where all can be read."""
    bad: list[str] = []
    count = sum(map(len, parts))
    print(f"decoding {count:,} images of {source.path}, once", flush=True)
    with progress("decoding Tiny-ImageNet", count, unit=" images") as bar:
        train, test = (_decoded(source, part, bad, bar) for part in parts)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        line = f"{len(bad)} of {count:,} images of {source.path} cannot be read: {', '.join(bad[:3])}{more}"
        if not skip:
            raise DataError(f"{line}; repair or remove them, or leave them out by --skip_unreadable")
        print(f"note      {line}; left out", flush=True)
        return train, test
    try:
        with whole(os.path.join(root, DECODED)) as file:
            torch.save({"key": key, "splits": [(split.images, split.labels) for split in (train, test)]}, file)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        print(f"note      the decoded images are not kept ({error}): they will be decoded each time", flush=True)
    return train, test


def _decoded(source: _Source, part: list[tuple[str, int]], bad: list[str], bar) -> Split:
    """A part's images that can be read; what is wrong with the others goes to `bad`."""
    pixels, good = torch.empty(len(part), 3, SIZE, SIZE, dtype=torch.uint8), []
    for i, (name, _) in enumerate(part):
        try:
            image = decode(io.BytesIO(source.read(name)), ("JPEG",), (SIZE, SIZE))  # some are grey
            pixels[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            good.append(i)
        except Exception as error:  # Pillow and zipfile raise many kinds
            bad.append(f"{name} ({printable(error) or type(error).__name__})")
        bar.update()
    split = Split(pixels, torch.tensor([label for _, label in part]))
    return split if len(good) == len(part) else split.take(torch.tensor(good, dtype=torch.int64))
