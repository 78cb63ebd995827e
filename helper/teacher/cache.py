"""The exact teacher cache: a frozen teacher's outputs on the views of every training image.

A view is one of 162 (81 where images are not mirrored; see dataset/views.py), so the teacher of a run can
say only n * 162 things. Each is computed once, and every later student, method and trial of that teacher
reads it. A cache is a folder of `--cache_dir`, named by a key (`key_of`) over the teacher's weights, the
images, their preprocessing and the arithmetic of the teacher. It holds, for each field of Outputs that some
run has needed so far,

    FIELD.bin    (n, views, width) float16 or float32, raw, memory-mapped by readers
    FIELD.sums   (n, views) uint32, the checksum of each row of FIELD.bin that is on the disk, 0 for the others
    meta.json    what the cache is of

It may be filled at once (`--teacher_cache on`), or grow by what each epoch shows (`auto` on the CPU). Either way
processes share the work: the images are dealt out in blocks, each computed by the process that holds its lock, which
the system lets go of when that process ends. A row is marked only after it has reached the disk, so a killed process
costs what it had not marked. Rows are held against their checksums before they are used, and those that differ are
computed anew. A complete cache is used where it cannot be written too. Only logits and pooled vectors are stored:
feature maps would be a hundred times as large, and a method that reads them keeps the live teacher.

Exactness. The teacher runs in float32, in the arithmetic that the live teacher has on that device (TF32 on cards
where it is on; both are part of the key). On the CPU it runs in batches of the run's own --batch_size, all of them
full. There a sample's outputs were found not to depend on its place in the batch nor on its neighbours, so a float32
cache gives a run of batches that all have this size bit-identical results. They were also found not to
depend on the batch's size from 13 images up, which covers the last, smaller batch of CIFAR-100 at 64 (16 images);
shorter ones may differ in the last bits of float32. A float16 cache rounds each value to 11 significant bits, which
changes KD's gradient at T=4 by less than a thousandth. Short runs stay within 1% (see the tests); over long ones
training amplifies any rounding, and six epochs of digits diverge as far for float16 as for logits times 1 + 1e-6.
"""
import contextlib
import fcntl
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dataset import Data, TrainViews
from dataset.views import views_of
from helper.teacher.keys import FORMAT, arithmetic, key_of
from helper.util.errors import RunError, UsageError
from helper.util.files import remove_partials, write_bytes, write_json
from helper.util.progress import progress
from models import Classifier
from models.precision import FLOAT32

FIELDS = ("logits", "pooled")
DTYPES = {"float16": torch.float16, "float32": torch.float32}
# Images whose views are one process's to compute at a time.
BLOCK = 2048
# Rows whose checksums are compared at a time, for the memory that takes.
VERIFIED_AT_ONCE = 1 << 17
# Seconds between the points that a killed process's work is kept up to.
SAVE_SECONDS = 10


class Unusable(Exception):
    """What a cache's folder holds is not its cache; the message says why."""


class Cache:
    """A teacher's cache in its folder, complete, begun or not there yet.

    root: the folder of all caches
    widths: by field, the length of its vectors
    """

    def __init__(self, root: str, network: Classifier, data: Data, dtype: str, device: torch.device,
                 widths: dict[str, int]):
        self.arithmetic = f"{arithmetic(device)} on {device.type}"
        self.key = key_of(network, data, dtype, self.arithmetic)
        self.root, self.folder = root, os.path.join(root, f"{network.name}_{data.name}_{dtype}_{self.key[:16]}")
        self.shape, self.flip = (len(data.train), len(views_of(data.flip))), data.flip
        self.rows = self.shape[0] * self.shape[1]
        self.dtype, self.widths = DTYPES[dtype], widths

    def have(self, name: str) -> np.ndarray:
        """(n * views,) uint32, the checksums of a field's rows (image by image, of an image view by view); 0 for those
        that are not on the disk.

        Mapped from its file, so that it follows what other processes add. Raises Unusable.
        """
        try:
            with open(self._path("meta.json"), encoding="utf-8") as meta_file:
                meta = json.load(meta_file)
            own = (meta["format"], meta["key"]) == (FORMAT, self.key)
        except FileNotFoundError:
            if os.path.exists(self._path(f"{name}.sums")):
                raise Unusable(f"{name}.sums has no meta.json beside it") from None
            return np.zeros(self.rows, np.uint32)
        except (ValueError, KeyError, TypeError):
            raise Unusable("meta.json is damaged") from None
        if not own:
            raise Unusable("meta.json is of another cache")
        sizes = {f"{name}.sums": 4 * self.rows, f"{name}.bin": self.bytes(name)}
        if not os.path.exists(self._path(f"{name}.sums")):
            return np.zeros(self.rows, np.uint32)
        for file, size in sizes.items():
            there = os.path.getsize(self._path(file)) if os.path.exists(self._path(file)) else 0
            if there != size:
                raise Unusable(f"{file} has {there:,} bytes instead of {size:,}")
        return np.memmap(self._path(f"{name}.sums"), np.uint32, "r")

    def left(self, fields: list[str]) -> float:
        """The part of the teacher's work for these fields that is still to do, 0 to 1."""
        try:
            return 1 - min(int(np.count_nonzero(self.have(name))) for name in fields) / self.rows
        except Unusable:
            return 1.0

    def bytes(self, *fields: str) -> int:
        """The size of these fields."""
        return sum(self.rows * self.widths[name] * self.dtype.itemsize for name in fields)

    def disk(self, fields: list[str]) -> tuple[int, int]:
        """The bytes that these fields still need of the disk, and those free there."""
        needed = 0
        for name in fields:
            for file, size in ((f"{name}.bin", self.bytes(name)), (f"{name}.sums", 4 * self.rows)):
                path = self._path(file)
                taken = os.stat(path).st_blocks * 512 if os.path.exists(path) else 0
                needed += max(size - taken, 0)
        return needed, shutil.disk_usage(_existing(self.root)).free

    @property
    def writable(self) -> bool:
        """Whether this process may add to the cache; one that it may only read serves if it is complete."""
        return os.access(_existing(self.folder), os.W_OK)

    def prepare(self, fields: list[str], network: Classifier, views: TrainViews, stop: Callable[[], None]) -> None:
        """Bring the files of these fields into being, empty where they are not there; what is there is held
        against the teacher, and begun afresh where it is not its outputs.

        stop: called while another process does the same; may raise to give up
        Raises UsageError where the disk is too small, or where something is missing and the folder cannot be written.
        """
        network.eval()
        if not self.writable:
            if self.left(fields) > 0:
                raise UsageError(f"cannot write to {self.folder}, and the cache there is not complete: give another "
                                 "--cache_dir, or --teacher_cache off")
            return
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {self.folder} ({error.strerror}): give another --cache_dir") from None
        with open(self._path(".lock"), "a+") as locks:
            while not _take(locks, 0):
                stop()
                time.sleep(0.1)
            remove_partials(self.folder)
            fault = self._fault(fields, network, views)
            if fault is not None:
                print(f"the teacher cache {self.folder} cannot be used ({fault}): building it afresh", flush=True)
                # Removed, not overwritten: a process that has mapped a file keeps what it read. The checksums first and
                # what says whose they are last: those that a kill leaves behind are never another cache's.
                for name in (*(f"{name}.{kind}" for kind in ("sums", "bin") for name in FIELDS), "meta.json"):
                    if os.path.exists(self._path(name)):
                        os.remove(self._path(name))
            needed, free = self.disk(fields)
            if needed > free:
                raise UsageError(f"the teacher cache needs {size(needed)} more in {self.root}, {size(free)} are free: "
                                 "make room, give another --cache_dir, or --teacher_cache off")
            if not os.path.exists(self._path("meta.json")):
                write_json(self._path("meta.json"), {
                    "format": FORMAT, "key": self.key, "images": self.shape[0], "views": self.shape[1],
                    "dtype": str(self.dtype).removeprefix("torch."), "arithmetic": self.arithmetic})
            for name in fields:
                if not os.path.exists(self._path(f"{name}.sums")):
                    self._reserve(self._path(f"{name}.bin"), self.bytes(name))
                    write_bytes(self._path(f"{name}.sums"), bytes(4 * self.rows))

    def fill(self, fields: list[str], rows: np.ndarray | None, network: Classifier, views: TrainViews, batch_size: int,
             stop: Callable[[], None]) -> None:
        """Bring these rows (ascending; None for all) of these fields onto the disk, after `prepare`; those that do not
        have their checksum are computed anew. The work is shared with the processes that do the same at the same time.

        batch_size: views in a batch of the teacher, halved where the device has no room for so many
        stop: called often; may raise to leave, what is done stays
        Raises RunError for values that the type of the cache cannot hold, and where rows of a cache that can only be
        read are damaged.
        """
        rows = np.arange(self.rows) if rows is None else rows
        for name in fields:
            self._verify(name, rows)
        marks = {name: self.have(name) for name in fields}
        rows = rows[_missing(marks, rows)]
        if len(rows) == 0:
            return
        ends = np.arange(BLOCK * self.shape[1], self.rows, BLOCK * self.shape[1])
        blocks = [(i + 1, part) for i, part in enumerate(np.split(rows, np.searchsorted(rows, ends))) if len(part)]
        with (open(self._path(".lock"), "a+") as locks, contextlib.ExitStack() as stack,
              progress("teacher cache", len(rows), unit=" views") as bar):
            files = {name: stack.enter_context(open(self._path(f"{name}.bin"), "r+b")) for name in fields}
            marks = {name: np.memmap(self._path(f"{name}.sums"), np.uint32, "r+") for name in fields}
            while blocks:
                busy = []
                for number, part in blocks:
                    done = len(rows) - int(_missing(marks, rows).sum())
                    if _take(locks, number):
                        batch_size = self._compute(
                            part[_missing(marks, part)], marks, files, network, views, batch_size, stop,
                            lambda here, done=done: bar.update(done + here - bar.n))
                        fcntl.lockf(locks, fcntl.LOCK_UN, 1, number)
                    else:
                        busy.append((number, part))
                        bar.update(done - bar.n)
                blocks = busy
                if busy:
                    stop()
                    time.sleep(0.05)

    def table(self, name: str) -> Tensor:
        """A field, (n, views, width), mapped from its file: read as it is used, shared by processes, and following
        what they add; to be read alone. Rows that are not there yet hold zeros."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PyTorch knows no read-only tensors and warns of them
            flat = torch.from_numpy(np.memmap(self._path(f"{name}.bin"), np.uint8, "r"))
        return flat.view(self.dtype).view(*self.shape, self.widths[name])

    def _verify(self, name, rows):
        """Take the marks off those of these rows whose values do not have their checksum."""
        damaged = self._damaged(name, rows)
        if len(damaged) == 0:
            return
        where = f"the teacher cache {self.folder}: {len(damaged):,} rows of {name}.bin do not have their checksum"
        if not self.writable:
            raise RunError(f"{where}, and it cannot be written: give another --cache_dir, or --teacher_cache off")
        print(f"{where}: computing them anew", flush=True)
        np.memmap(self._path(f"{name}.sums"), np.uint32, "r+")[damaged] = 0

    def _damaged(self, name, rows):
        """Those of these rows that are on the disk and do not have their checksum."""
        values = np.memmap(self._path(f"{name}.bin"), np.uint16, "r").reshape(self.rows, -1)
        marks, found = self.have(name), [rows[:0]]
        for start in range(0, len(rows), VERIFIED_AT_ONCE):
            part = rows[start : start + VERIFIED_AT_ONCE]
            part = part[marks[part] != 0]
            found.append(part[checksums(values[part]) != marks[part]])
        return np.concatenate(found)

    @torch.inference_mode()
    def _fault(self, fields, network, views):
        """What is wrong with the folder, in words, or None; what it holds is compared with the teacher."""
        for name in fields:
            try:
                held = np.flatnonzero(self.have(name))
            except Unusable as error:
                return str(error)
            if len(held) == 0:
                continue
            probed = np.sort(np.random.default_rng().choice(held, 64))
            rows = torch.from_numpy(np.setdiff1d(probed, self._damaged(name, probed)))
            if len(rows) == 0:
                continue
            live = self._outputs(rows, network, views, [name])[name].float().cpu()
            stored = self.table(name).flatten(0, 1)[rows].float()
            # Wide enough for other kernels, TF32 and float16, far too narrow for another teacher or for zeros.
            if not (stored - live).abs().max() <= 0.01 * live.abs().max():
                return f"{name}.bin does not hold this teacher's outputs"
        return None

    def _outputs(self, rows, network, views, fields):
        """These of the teacher's outputs, by field, for rows, (m,) int64 on the CPU; no others are kept."""
        index = (rows // self.shape[1]).to(views.labels.device)
        view = views_of(self.flip)[rows % self.shape[1]].to(views.labels.device)
        out = FLOAT32.outputs(network, views.gather(index, view), frozenset(fields))
        return {name: getattr(out, name) for name in fields}

    @torch.inference_mode()
    def _compute(self, rows, marks, files, network, views, batch_size, stop, show):
        """Compute these rows of the fields that lack them, write them, and mark them once they are on the disk.

        rows: (m,) int64, ascending; show: called with the number of rows done
        Returns the batch size that the device had room for.
        """
        first, saved = 0, time.monotonic()
        sums = {name: np.zeros(len(rows), np.uint32) for name in files}

        def save(last):
            for name, file in files.items():
                os.fsync(file.fileno())
                written = np.flatnonzero(sums[name][first:last]) + first
                marks[name][rows[written]] = sums[name][written]
            return last

        start = 0
        try:
            while start < len(rows):
                show(start)
                stop()
                if time.monotonic() - saved >= SAVE_SECONDS:
                    first, saved = save(start), time.monotonic()
                # Every batch is a full one: the last is filled up with rows that were there before.
                part = torch.from_numpy(rows[np.arange(start, start + batch_size) % len(rows)])
                try:
                    out = self._outputs(part, network, views, list(files))
                except torch.OutOfMemoryError:
                    if batch_size == 1:
                        raise
                    batch_size //= 2
                    continue
                for name, written in self._write(files, marks, rows[start : start + batch_size], out).items():
                    sums[name][start : start + len(written)] = written
                start = min(start + batch_size, len(rows))
        finally:
            save(start)
        return batch_size

    def _write(self, files, marks, rows, out):
        """Put the first outputs of a batch in their places, a piece for each run of neighbouring rows.

        Returns, by field, the checksums of the rows that were written, (m,) uint32, 0 for the others.
        """
        written = {}
        for name, file in files.items():
            values = out[name][: len(rows)].to(self.dtype).cpu().contiguous()
            if not values.isfinite().all():
                raise RunError(f"the teacher's {name} exceed what {self.dtype} holds: give --cache_dtype float32")
            lacking = np.flatnonzero(marks[name][rows] == 0)
            width = self.widths[name] * self.dtype.itemsize
            content = values.view(torch.uint8).numpy()
            for run in np.split(lacking, np.flatnonzero(np.diff(rows[lacking]) != 1) + 1):
                if len(run):
                    os.pwrite(file.fileno(), content[run[0] : run[-1] + 1].tobytes(), int(rows[run[0]]) * width)
            written[name] = np.zeros(len(rows), np.uint32)
            written[name][lacking] = checksums(content.view(np.uint16)[lacking])
        return written

    @staticmethod
    def _reserve(path, size):
        """An empty file of this size that the disk has room for: one that fills up later cannot end a long build."""
        with open(path, "wb") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size)

    def _path(self, name):
        return os.path.join(self.folder, name)


def checksums(rows: np.ndarray) -> np.ndarray:
    """(m,) uint32, none 0, of rows (m, words) uint16: any one changed word changes it."""
    # Odd factors are units modulo 2^32, so that a change of one word is never lost; unequal ones see exchanges too.
    factors = (2 * np.arange(rows.shape[1], dtype=np.uint32) + 1) * np.uint32(2654435761)
    sums = rows.astype(np.uint32) @ factors + np.uint32(0x9E3779B9)
    return np.where(sums == 0, np.uint32(1), sums)


def _existing(path):
    """The path, or the nearest folder above it that is there."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _missing(marks, rows):
    """(m,) bool: which of the rows some field lacks; marks: by field, (n * views,)."""
    return np.any([mark[rows] == 0 for mark in marks.values()], axis=0)


def _take(locks, number):
    """Take one of the locks of an open file, by number, until it is let go or the file is closed; False where another
    process holds it."""
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except (BlockingIOError, PermissionError):  # either, by the system
        return False
    return True


def size(count: int) -> str:
    """Bytes in words: '1.62 GB'."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
