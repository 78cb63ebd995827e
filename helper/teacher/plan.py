"""Where a run's teacher outputs come from: the live teacher, a complete cache, or one that grows."""
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dataset import Data, EvalData, Split, TrainData, TrainViews
from helper.evaluation import Evaluation, evaluate
from helper.teacher.cache import FIELDS, Cache, CachedTeacher, arithmetic, fingerprint, size
from helper.teacher.source import LiveTeacher, TeacherSource
from helper.util import distributed
from helper.util.errors import UsageError
from helper.util.files import write_json
from helper.util.nested import tensors
from models import Classifier, Outputs
from models.precision import FLOAT32, Precision

# Views in a batch of the build on a GPU: enough to fill it. On the CPU larger batches than a run's gain nothing.
CUDA_BATCH = 4096
# How many times faster than in training's batches the teacher runs in the build's on a GPU: cautious, not measured.
BUILD_GAIN = 2.0
# Images on which the teacher works at once on a GPU, and the part of the free memory that its outputs may take.
AHEAD, MEMORY_AHEAD = 1024, 0.1
# What the cache leaves free on a GPU, for the images, the networks and their activations.
HEADROOM = 4 * 2**30


class CacheInputs(NamedTuple):
    """What the choice between a cache and the live teacher depends on.

    asked: "on" or "auto"
    reads: the fields of the teacher that the run reads
    earlier: "cache" or "live", what the run that is resumed had chosen; None for a new run
    left: the part of the cache that is still to be built, 0 to 1
    epochs: those still to train
    views: of an image
    disk_needed, disk_free, table, device_free: bytes; device_free is None on the CPU, where tables are read
        from the file's mapping
    writable: whether the cache can be added to
    """

    asked: str
    reads: frozenset[str]
    earlier: str | None
    left: float
    epochs: int
    views: int
    disk_needed: int
    disk_free: int
    table: int
    device_free: int | None
    writable: bool = True


def unstored(reads: frozenset[str]) -> list[str]:
    """Those of the fields that no cache holds."""
    return sorted(reads - set(FIELDS))


def needs_all_views(options) -> bool:
    """Whether IKD takes its class means over all views, which a complete cache alone holds."""
    return options.ikd_means == "all" and options.avg != 0


def decide(s: CacheInputs) -> tuple[str, str]:
    """"live", "complete" (build what is missing first) or "grow" (add what each epoch shows), and why, in words.

    Growing costs no more than the live teacher, since a view is computed when it is first needed and never again;
    on a GPU, where an epoch may take less than a second, it would wait for the disk.
    """
    on_cpu = s.device_free is None
    fits = s.device_free is None or s.table + HEADROOM <= s.device_free
    # The teacher's work in passes over the training set, at its speed in training.
    build = s.left * s.views / BUILD_GAIN
    costs = f"building costs {build:.0f} epochs of the teacher's work, training without it {s.epochs}"
    if unstored(s.reads):
        return "live", f"live teacher: {', '.join(unstored(s.reads))} are read, and feature maps are not stored"
    if not s.reads:
        return "live", "not needed: nothing of the teacher is read"
    if s.asked == "on":
        return "complete", "complete" if s.left == 0 else "asked for"
    if s.earlier == "live":
        return "live", "as this run began (live)"
    if not fits and s.earlier is None:
        return "live", (f"live teacher: the device has {size(s.device_free or 0)} free, the cache needs "
                        f"{size(s.table)} and {size(HEADROOM)} are left to training")
    if s.left == 0:
        return "complete", "complete"
    if not s.writable and s.earlier is None:
        return "live", "live teacher: the cache is not complete and cannot be written"
    if s.disk_needed > s.disk_free:
        return "live", (f"live teacher: the cache needs {size(s.disk_needed)} more on the disk, "
                        f"{size(s.disk_free)} are free")
    if on_cpu:
        return "grow", f"grows by the views that each epoch shows ({100 * (1 - s.left):.0f}% of all are there)"
    if s.earlier == "cache":
        return "complete", "as this run began (cache)"
    if build >= s.epochs:
        return "live", f"live teacher: {costs}"
    return "complete", f"estimated to be faster: {costs}"


@dataclass(frozen=True)
class TeacherPlan:
    """Where a run's teacher outputs will come from.

    source: "live", "complete" or "grow"; cache: None for "live"
    facts: for the run's record and first lines, empty with `--teacher_cache off`
    precision: of the teacher; with a cache it runs in float32 whatever the run's
    """

    teacher: Classifier
    reads: frozenset[str]
    source: str
    cache: Cache | None
    facts: dict[str, str]
    batch_size: int
    precision: Precision = FLOAT32

    @property
    def kind(self) -> str:
        """"live" or "cache": what a resumed run keeps."""
        return "live" if self.source == "live" else "cache"

    def open(self, views: TrainData, stop: Callable[[], None]) -> TeacherSource:
        """The source of the outputs that are read; fills the cache first where it is to be complete.

        Raises as Cache.prepare and Cache.fill, and what `stop` raises.
        """
        if self.cache is None:
            return LiveTeacher(self.teacher, self.reads, self.precision)
        fields, device, cache = sorted(self.reads), views.labels.device, self.cache
        assert isinstance(views, TrainViews)  # a cache is planned for countable views alone
        cache.prepare(fields, self.teacher, views, stop)

        def fill(rows):
            cache.fill(fields, rows, self.teacher, views, self.batch_size, stop)

        if self.source == "grow":
            def fill_epoch(plan):
                order, view = (x.numpy() for x in plan)
                fill(np.sort(order * cache.shape[1] + (view if views.flip else view // 2)))

            return CachedTeacher({name: cache.table(name) for name in fields}, views.flip, fill_epoch)
        if cache.left(fields) > 0:
            print(f"filling the teacher cache {cache.folder}: {' and '.join(fields)} of {cache.rows:,} views, "
                  f"{size(cache.bytes(*fields))}, in {cache.arithmetic}; "
                  f"{100 * (1 - cache.left(fields)):.1f}% are there", flush=True)
        fill(None)  # also verifies what is there
        tables = {name: cache.table(name) for name in fields}
        free = _device_free(device)
        if free is not None:
            if cache.bytes(*fields) + HEADROOM <= free:
                tables = {name: table.to(device) for name, table in tables.items()}
            else:
                print(f"the teacher cache stays on the host: the device has {size(free)} free", flush=True)
        return CachedTeacher(tables, views.flip)


def plan_teacher(options, teacher: Classifier, data: Data, trainee, device: torch.device, record) -> TeacherPlan:
    """Choose by `--teacher_cache`; a resumed run keeps its choice.

    trainee: a build.Trainee, for what its objective reads of the teacher
    record: for the epochs that the run still has to train and its earlier choice
    Raises UsageError where `--ikd_means all` cannot have the cache that it needs.
    """
    reads, probe, precision = trainee.objective.reads, trainee.setup.teacher, trainee.precision
    source, cache, facts = "live", None, {}
    if options.teacher_cache != "off" and not data.countable:
        facts = {"cache": f"live teacher: {data.name} has unbounded random augmentation, which no cache can hold"}
    elif options.teacher_cache != "off":
        if reads and not unstored(reads):
            widths = {name: getattr(probe, name).shape[1] for name in FIELDS if getattr(probe, name) is not None}
            cache = Cache(options.cache_dir, teacher, data, options.cache_dtype, device, widths)
        source, reason = distributed.broadcast_from_rank0(
            lambda: decide(_inputs(options, cache, reads, device, record)))
        facts = {"cache": reason}
        if cache and source != "live":
            facts["cache"] += f" ({options.cache_dtype}, {size(cache.bytes(*reads))}, {cache.folder})"
    if needs_all_views(options) and source == "live":
        raise UsageError("--ikd_means all takes the class means from the teacher cache, which this run does not use "
                         f"({facts.get('cache', '--teacher_cache off')}): give --teacher_cache on and a method "
                         "that reads no feature maps, or --ikd_means epoch")
    batch_size = CUDA_BATCH if device.type == "cuda" else options.batch_size
    return TeacherPlan(teacher, reads, source, None if source == "live" else cache, facts, batch_size,
                precision if source == "live" else FLOAT32)


def cached_teacher_accuracy(teacher: Classifier, data: Data, test: EvalData, precision: Precision,
                            folder: str) -> Evaluation:
    """The teacher's test accuracy, measured once: kept in `folder`/accuracy under all that it depends on. Where the
    images are read as they are needed, they may change, and it is measured each time."""
    if not isinstance(data.test, Split):
        return evaluate(teacher, test, precision, what="the teacher's test accuracy")
    device = test.labels.device
    key = fingerprint(teacher.state_dict(), data.test.images, data.test.labels, teacher.name, data.mean, data.std,
                      precision, arithmetic(device), device.type, torch.__version__)
    path = os.path.join(folder, "accuracy", f"{teacher.name}_{data.name}_{key[:16]}.json")

    def held():
        # Not there yet, or damaged.
        with contextlib.suppress(OSError, ValueError, TypeError), open(path, encoding="utf-8") as file:
            return Evaluation(**json.load(file))

    accuracy = distributed.broadcast_from_rank0(held)
    if accuracy is None:
        accuracy = evaluate(teacher, test, precision, what="the teacher's test accuracy")
        # Kept to save time: where it cannot be, the next run measures it again.
        with contextlib.suppress(OSError):
            if distributed.rank() == 0:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                write_json(path, accuracy._asdict())
    return accuracy


def batches_ahead(probe: Outputs, reads: frozenset[str], batch_size: int, device: torch.device) -> int:
    """On how many batches the teacher works at once: 1 on the CPU, where larger batches gain nothing; on a GPU
    as many as make AHEAD images, fewer where what is read of the teacher would take much of the memory.

    probe: the teacher's outputs for some images, for their sizes
    """
    if device.type != "cuda" or not reads:
        return 1
    image = 4 * sum(f[0].numel() for f in tensors(getattr(probe, name) for name in reads))
    memory = int(MEMORY_AHEAD * torch.cuda.mem_get_info(device)[0])
    return max(1, min(AHEAD, memory // image) // batch_size)


def _inputs(options, cache, reads, device, record):
    # Means over all views exist in a complete cache alone: `auto` has no choice then.
    asked = "on" if needs_all_views(options) else options.teacher_cache
    fields = sorted(reads)
    needed, free = cache.disk(fields) if cache else (0, 0)
    return CacheInputs(
        asked, reads, record.earlier.decisions.get("teacher_source"), cache.left(fields) if cache else 1.0,
        record.epochs_left("train", options.epochs), cache.shape[1] if cache else 0, needed, free,
        cache.bytes(*fields) if cache else 0, _device_free(device), cache is None or cache.writable)


def _device_free(device):
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
