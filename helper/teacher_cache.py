"""The exact teacher cache: a frozen teacher's outputs on every view of every training image.

A view is one of 162 (81 where images are not mirrored; see dataset/views.py), so the teacher of a run can
say only n * 162 things. They are computed once, and every later student, method and trial of that teacher
reads them. A cache is a folder of `--cache_dir`, named by a key (`key_of`) over the teacher's weights, the
images, their preprocessing and the arithmetic of the build. It holds, for each field of Outputs that some
run has needed so far,

    FIELD.bin   (n, views, width) float16 or float32, raw, memory-mapped by readers
    meta.json   replaced whole after rows have reached the disk; says how many rows of each field are done

so that a killed build goes on where meta.json says, and a field is complete when all its rows are done. A
lock in the folder lets one process build while others wait. Only logits and pooled vectors are stored: feature
maps would be a hundred times as large, and a method that reads them keeps the live teacher.

Exactness. The build runs in float32, in the arithmetic that the live teacher has on that device (TF32 on cards
where it is on; both are part of the key). On the CPU it runs in batches of the run's own --batch_size. There a
sample's outputs were found not to depend on its place in the batch nor on its neighbours, so a float32 cache gives a
run of batches that all have the build's size the very bits of a run without it. They were also found not to depend on
the batch's size from 13 images up, which covers the last, smaller batch of CIFAR-100 at 64 (16 images); shorter ones
may differ in the last bits of float32. A float16 cache rounds each value to 11 significant bits, which
changes KD's gradient at T=4 by less than a thousandth. Short runs stay within 1% (see the tests); over long ones
training amplifies any rounding, and six epochs of digits part as far for float16 as for logits times 1 + 1e-6.
"""
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dataset import Batch, Data, TrainViews
from dataset.views import PADDING, views_of
from helper.errors import RunError, UsageError
from helper.files import wait_for_folder, write_json
from helper.loop import FLOAT32, LiveTeacher
from helper.precision import Precision
from helper.progress import clock
from models import Classifier, Outputs

FIELDS = ("logits", "pooled")
FORMAT = 1
DTYPES = {"float16": torch.float16, "float32": torch.float32}
# Views in a batch of the build on a GPU: enough to fill it. On the CPU larger batches than a run's gain nothing.
CUDA_BATCH = 4096
# How many times faster than in training's batches the teacher runs in the build's; on CUDA cautious, not measured.
BUILD_GAIN = {"cpu": 1.0, "cuda": 2.0}
# What the cache leaves free on a GPU, for the images, the nets and their activations.
HEADROOM = 4 * 2**30
# Seconds between the points that a killed build goes on from.
SAVE_SECONDS = 10
# Seconds between progress lines where the output is not a terminal.
PAUSE = 15


class CachedTeacher:
    """In the place of LiveTeacher: looks the outputs up by (index, view). Gathers only, so that nothing waits
    for the device where the tables are on it; where they are on the host, each step waits for one transfer.

    tables: by field, (n, views, width), of any float type
    flip: whether the views are mirrored too, as Data.flip
    """

    def __init__(self, tables: dict[str, Tensor], flip: bool):
        self.tables, self.flip = tables, flip

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """The fields held, float32, on the batch's device."""
        place = batch.view if self.flip else batch.view // 2
        device, fields = batch.index.device, {}
        for name, table in self.tables.items():
            row = (batch.index * table.shape[1] + place).to(table.device)
            fields[name] = table.flatten(0, 1).index_select(0, row).to(device).float()
        return Outputs(**fields)

    @torch.no_grad()
    def class_sums(self, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """The logits summed over all views of each class, (classes, classes) with a class a row, and how many
        views that are, (classes,); both float64. labels: (n,) int64, of the training set."""
        table = self.tables["logits"]
        one_hot = torch.nn.functional.one_hot(labels.to(table.device), num_classes).double()
        sums = one_hot.new_zeros(num_classes, table.shape[2])
        for i in range(0, len(table), 512):  # in float64 all at once would be several gigabytes
            sums += one_hot[i : i + 512].T @ table[i : i + 512].double().sum(1)
        return sums, one_hot.sum(0) * table.shape[1]


class Unusable(Exception):
    """What a cache's folder holds is not its cache; the message says why."""


class Cache:
    """A teacher's cache in its folder, complete, begun or not there yet.

    root: the folder of all caches
    widths: by field, the length of its vectors
    """

    def __init__(self, root: str, net: Classifier, data: Data, dtype: str, device: torch.device,
                 widths: dict[str, int]):
        self.precision = f"{arithmetic(device)} on {device.type}"
        self.key = key_of(net, data, dtype, self.precision)
        self.root, self.folder = root, os.path.join(root, f"{net.name}_{data.name}_{dtype}_{self.key[:16]}")
        self.shape, self.flip = (len(data.train), len(views_of(data.flip))), data.flip
        self.rows = self.shape[0] * self.shape[1]
        self.dtype, self.widths = DTYPES[dtype], widths

    def done(self) -> dict[str, int]:
        """By field, how many rows (image by image, of an image view by view) are on the disk.

        Raises Unusable.
        """
        try:
            with open(self._path("meta.json")) as file:
                meta = json.load(file)
            done = {name: held["rows"] for name, held in meta["fields"].items()}
            own = (meta["format"], meta["key"]) == (FORMAT, self.key)
            sound = all(isinstance(rows, int) and 0 <= rows <= self.rows and name in FIELDS
                        for name, rows in done.items())
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Unusable("meta.json is damaged") from None
        if not own or not sound:
            raise Unusable("meta.json is of another cache")
        for name in done:
            path = self._path(f"{name}.bin")
            size = os.path.getsize(path) if os.path.exists(path) else 0
            if size != self.bytes(name):
                raise Unusable(f"{name}.bin has {size:,} bytes instead of {self.bytes(name):,}")
        return done

    def left(self, fields: list[str]) -> float:
        """The part of the teacher's work for these fields that is still to do, 0 to 1."""
        try:
            done = self.done()
        except Unusable:
            return 1.0
        return 1 - min(done.get(name, 0) for name in fields) / self.rows

    def bytes(self, *fields: str) -> int:
        """The size of these fields."""
        return sum(self.rows * self.widths[name] * self.dtype.itemsize for name in fields)

    def disk(self, fields: list[str]) -> tuple[int, int]:
        """The bytes that these fields still need of the disk, and those free there."""
        needed = 0
        for name in fields:
            path = self._path(f"{name}.bin")
            taken = os.stat(path).st_blocks * 512 if os.path.exists(path) else 0
            needed += max(self.bytes(name) - taken, 0)
        place = os.path.abspath(self.root)
        while not os.path.exists(place):
            place = os.path.dirname(place)
        return needed, shutil.disk_usage(place).free

    def ensure(self, fields: list[str], net: Classifier, views: TrainViews, batch_size: int,
               stop: Callable[[], None]) -> None:
        """Make these fields complete: find them so, wait for the process that builds them, or build them.

        batch_size: views in a batch of the build
        stop: called often; may raise to leave, what is done stays
        Raises UsageError where the disk is too small, RunError for values that float16 cannot hold.
        """
        net.eval()
        if self._fault(fields, net, views) is None and self.left(fields) == 0:
            return
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {self.folder} ({error.strerror}): give another --cache_dir") from None
        with wait_for_folder(self.folder, stop, f"another process is building {self.folder}: waiting for it"):
            fault = self._fault(fields, net, views)
            if fault is not None:
                print(f"the teacher cache {self.folder} cannot be used ({fault}): building it afresh", flush=True)
                # Removed, not overwritten: a process that has mapped a file keeps what it read.
                for name in ("meta.json", *(f"{name}.bin" for name in FIELDS)):
                    if os.path.exists(self._path(name)):
                        os.remove(self._path(name))
            if self.left(fields) > 0:
                self._build(fields, net, views, batch_size, stop)

    def table(self, name: str) -> Tensor:
        """A complete field, (n, views, width), mapped from its file: read as it is used, shared by processes."""
        size = self.rows * self.widths[name]
        # shared=False maps the file for reading alone: a stray write would stay in this process.
        return torch.from_file(self._path(f"{name}.bin"), shared=False, size=size, dtype=self.dtype).view(
            *self.shape, self.widths[name])

    @torch.inference_mode()
    def _fault(self, fields, net, views):
        """What is wrong with the folder, in words, or None; complete fields are compared with the teacher."""
        try:
            done = self.done()
        except Unusable as error:
            return str(error)
        held = [name for name in fields if done.get(name, 0) == self.rows]
        if held:
            row = torch.linspace(0, self.rows - 1, 64, dtype=torch.float64).long().to(views.labels.device)
            out = net(views.gather(*self._index_view(row)), named=True)
            for name in held:
                live = getattr(out, name).float()
                stored = self.table(name).flatten(0, 1)[row.cpu()].to(live.device).float()
                # Wide enough for other kernels, TF32 and float16, far too narrow for another teacher or for zeros.
                if not (stored - live).abs().max() <= 0.01 * live.abs().max():
                    return f"{name}.bin does not hold this teacher's outputs"
        return None

    def _index_view(self, row):
        return row // self.shape[1], views_of(self.flip).to(row.device)[row % self.shape[1]]

    def _build(self, fields, net, views, batch_size, stop):
        needed, free = self.disk(fields)
        if needed > free:
            raise UsageError(f"the teacher cache needs {_size(needed)} more in {self.root}, {_size(free)} are free: "
                             "make room, give another --cache_dir, or --teacher_cache off")
        done = self.done()
        missing = [name for name in fields if done.get(name, 0) < self.rows]
        row = min(done.get(name, 0) for name in missing)
        goes_on = f", going on at {100 * row / self.rows:.1f}%" if row else ""
        print(f"building the teacher cache {self.folder}: {' and '.join(missing)} of {self.rows:,} views, "
              f"{_size(self.bytes(*missing))}, in {self.precision}{goes_on}", flush=True)
        progress = _Progress(self.rows, row)
        files = {name: open(self._path(f"{name}.bin"), "r+b" if name in done else "w+b")  # noqa: SIM115
                 for name in missing}
        try:
            for name, file in files.items():
                file.truncate(self.bytes(name))
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    # Reserved now, so that a disk that fills up later cannot end a long build.
                    os.posix_fallocate(file.fileno(), 0, self.bytes(name))
            saved = time.monotonic()
            try:
                while row < self.rows:
                    # The last batch reaches back: its outputs too come from a batch of the full size.
                    first = min(row, max(self.rows - batch_size, 0))
                    row = self._write(files, net, views, first, min(first + batch_size, self.rows))
                    progress.show(row)
                    if time.monotonic() - saved >= SAVE_SECONDS:
                        self._record(files, done, row)
                        saved = time.monotonic()
                    stop()
            finally:
                self._record(files, done, row)
        finally:
            for file in files.values():
                file.close()
        progress.end()

    @torch.inference_mode()
    def _write(self, files, net, views, first, last):
        """Compute and write the rows from `first` up to `last`, which is returned."""
        rows = torch.arange(first, last, device=views.labels.device)
        with torch.autocast(rows.device.type, enabled=False):
            out = net(views.gather(*self._index_view(rows)), named=True)
        for name, file in files.items():
            values = getattr(out, name).to(self.dtype).cpu().contiguous()
            if not values.isfinite().all():
                raise RunError(f"the teacher's {name} exceed what {self.dtype} holds: give --cache_dtype float32")
            file.seek(first * self.widths[name] * self.dtype.itemsize)
            file.write(values.numpy().tobytes())
        return last

    def _record(self, files, done, row):
        """Bring the files to the disk, and then say in meta.json that all rows before `row` are done."""
        for name, file in files.items():
            file.flush()
            os.fsync(file.fileno())
            done[name] = max(done.get(name, 0), row)
        write_json(self._path("meta.json"), {
            "format": FORMAT, "key": self.key, "images": self.shape[0], "views": self.shape[1],
            "dtype": str(self.dtype).removeprefix("torch."), "arithmetic": self.precision,
            "fields": {name: {"width": self.widths[name], "rows": rows} for name, rows in done.items()},
        })

    def _path(self, name):
        return os.path.join(self.folder, name)


def arithmetic(device: torch.device) -> str:
    """The arithmetic of the teacher's forward pass: "float32", or "tf32" on CUDA devices where that is on."""
    tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return "tf32" if device.type == "cuda" and tf32 else "float32"


def key_of(net: Classifier, data: Data, dtype: str, precision: str) -> str:
    """SHA-256, in hexadecimal, of everything that a cache's content depends on."""
    digest = hashlib.sha256()

    def add(name, value):
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
        else:
            digest.update(repr((name, value)).encode())

    for name, value in net.state_dict().items():
        add(name, value)
    add("images", data.train.images)
    # The format stands for the code: how a view is cut and numbered, how rows are laid out.
    add("rest", (FORMAT, net.name, data.mean, data.std, data.flip, PADDING, dtype, precision))
    return digest.hexdigest()


class Situation(NamedTuple):
    """What the choice between a cache and the live teacher depends on.

    asked: "on" or "auto"
    reads: the fields of the teacher that the run reads
    earlier: "cache" or "live", what the run that goes on here had chosen; None for a new run
    left: the part of the cache that is still to be built, 0 to 1
    epochs: those still to train
    views: of an image
    gain: how many times faster than in training the teacher runs while the cache is built
    disk_needed, disk_free, table, device_free: bytes; device_free is None on the CPU, where tables are read
        from the file's mapping
    """

    asked: str
    reads: frozenset[str]
    earlier: str | None
    left: float
    epochs: int
    views: int
    gain: float
    disk_needed: int
    disk_free: int
    table: int
    device_free: int | None


def unstored(reads: frozenset[str]) -> list[str]:
    """Those of the fields that no cache holds."""
    return sorted(reads - set(FIELDS))


def decide(s: Situation) -> tuple[bool, str]:
    """Whether to use the cache, and why, in words."""
    fits = s.device_free is None or s.table + HEADROOM <= s.device_free
    # The teacher's work in passes over the training set, at its speed in training.
    build = s.left * s.views / s.gain
    costs = f"building costs {build:.0f} epochs of the teacher's work, training without it {s.epochs}"
    if unstored(s.reads):
        return False, f"live teacher: {', '.join(unstored(s.reads))} are read, and feature maps are not stored"
    if not s.reads:
        return False, "not needed: nothing of the teacher is read"
    if s.asked == "on":
        return True, "complete" if s.left == 0 else "asked for"
    if s.earlier is not None:
        return s.earlier == "cache", f"as this run began ({s.earlier})"
    if not fits:
        return False, (f"live teacher: the device has {_size(s.device_free)} free, the cache needs {_size(s.table)} "
                       f"and {_size(HEADROOM)} are left to training")
    if s.left == 0:
        return True, "complete"
    if s.disk_needed > s.disk_free:
        return False, (f"live teacher: the cache needs {_size(s.disk_needed)} more on the disk, "
                       f"{_size(s.disk_free)} are free")
    if build >= s.epochs:
        return False, f"live teacher: {costs}"
    return True, f"pays: {costs}"


@dataclass(frozen=True)
class Plan:
    """Where a run's teacher outputs will come from.

    cache: None for the live teacher
    facts: for the run's record and first lines, empty with `--teacher_cache off`
    precision: of the live teacher; a cache is built in float32 whatever the run's
    """

    teacher: Classifier
    reads: frozenset[str]
    cache: Cache | None
    facts: dict[str, str]
    batch_size: int
    precision: Precision = FLOAT32

    def open(self, views: TrainViews, stop: Callable[[], None]) -> Callable[[Batch], Outputs]:
        """batch -> the outputs that are read; builds the cache first where it is not complete.

        Raises as Cache.ensure, and what `stop` raises.
        """
        if self.cache is None:
            return LiveTeacher(self.teacher, self.reads, self.precision)
        fields, device = sorted(self.reads), views.labels.device
        self.cache.ensure(fields, self.teacher, views, self.batch_size, stop)
        tables = {name: self.cache.table(name) for name in fields}
        free = _device_free(device)
        if free is not None:
            if self.cache.bytes(*fields) + HEADROOM <= free:
                tables = {name: table.to(device) for name, table in tables.items()}
            else:
                print(f"the teacher cache stays on the host: the device has {_size(free)} free", flush=True)
        return CachedTeacher(tables, views.flip)


def plan(options, teacher: Classifier, data: Data, probe: Outputs, reads: frozenset[str],
         device: torch.device, precision: Precision, run) -> Plan:
    """Choose by `--teacher_cache`; the choice is written to options.teacher_source, so that a run that is gone on
    with keeps it.

    probe: the teacher's outputs for any images, for their widths
    reads: the fields that the objective reads
    run: a Run, for the epochs that it still has to train and its earlier choice
    Raises UsageError where `--ikd_means all` cannot have the cache that it needs.
    """
    use, cache, facts = False, None, {}
    if options.teacher_cache != "off":
        reason = None
        if reads and not unstored(reads):
            widths = {name: getattr(probe, name).shape[1] for name in FIELDS if getattr(probe, name) is not None}
            cache = Cache(options.cache_dir, teacher, data, options.cache_dtype, device, widths)
        use, reason = decide(_situation(options, cache, reads, device, run))
        where = f" ({options.cache_dtype}, {_size(cache.bytes(*reads))}, {cache.folder})" if use else ""
        facts = {"cache": reason + where}
    if options.ikd_means == "all" and not use:
        raise UsageError("--ikd_means all takes the class means from the teacher cache, which this run does not use "
                         f"({facts.get('cache', '--teacher_cache off')}): give --teacher_cache on and a method "
                         "that reads no feature maps, or --ikd_means epoch")
    options.teacher_source = "cache" if use else "live"
    batch_size = CUDA_BATCH if device.type == "cuda" else options.batch_size
    return Plan(teacher, reads, cache if use else None, facts, batch_size, precision)


def _situation(options, cache, reads, device, run):
    # Means over all views exist in the cache alone: `auto` has no choice then.
    asked = "on" if options.ikd_means == "all" else options.teacher_cache
    fields = sorted(reads)
    needed, free = cache.disk(fields) if cache else (0, 0)
    return Situation(
        asked, reads, run.earlier.get("teacher_source"), cache.left(fields) if cache else 1.0,
        run.epochs_left("train", options.epochs), cache.shape[1] if cache else 0, BUILD_GAIN[device.type], needed, free,
        cache.bytes(*fields) if cache else 0, _device_free(device))


def _device_free(device):
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _size(count):
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


class _Progress:
    """A line that says how far the build is: overwritten on a terminal, elsewhere a new one now and then."""

    def __init__(self, rows, first):
        self.rows, self.first = rows, first
        self.started = self.spoke = time.perf_counter()
        self.live = sys.stdout.isatty()

    def show(self, row):
        now = time.perf_counter()
        if now - self.spoke < (0.5 if self.live else PAUSE):
            return
        self.spoke, speed = now, (row - self.first) / (now - self.started)
        line = (f"teacher cache {100 * row / self.rows:.1f}%  {row:,}/{self.rows:,} views  {speed:,.0f} views/s  "
                f"{clock((self.rows - row) / speed)} left")
        print(f"\r{line}\033[K" if self.live else line, end="" if self.live else "\n", flush=True)

    def end(self):
        seconds = time.perf_counter() - self.started
        print(("\r\033[K" if self.live else "") + f"teacher cache complete: {self.rows - self.first:,} views in "
              f"{clock(seconds)}, {(self.rows - self.first) / seconds:,.0f} views/s", flush=True)
