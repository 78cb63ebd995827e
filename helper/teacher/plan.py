"""Where a run's teacher outputs come from: the live teacher, a complete cache, or one that grows."""
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset import Batch, Data, EvalData, Split, TrainData, TrainViews
from helper.evaluation import Evaluation, evaluate
from helper.teacher.cache import FIELDS, Cache, size
from helper.teacher.kept import kept
from helper.teacher.keys import arithmetic, fingerprint
from helper.teacher.source import CachedTeacher, LiveTeacher, TeacherSource, WithStrongView
from helper.util import distributed
from helper.util.errors import UsageError
from helper.util.files import write_json
from helper.util.gpu import free_memory
from models import Classifier
from models.precision import FLOAT32, LOGITS, Precision

# Pixels in a batch of the build on a GPU, those of 4,096 images of 32x32; fewer where they do not fit (Cache.fill). On
# the CPU larger batches than a run's gain nothing.
BUILD_PIXELS = 4096 * 32 * 32
# Images on which the teacher works at once on a GPU, and the part of the free memory that this may take.
AHEAD, MEMORY_AHEAD = 1024, 0.1
# Batches of a timing: those that warm up, and those that are timed.
WARM_UP, TIMED = 2, 4
# The second view is drawn anew each epoch: its outputs are computed live, beside a cache of the others.
LIVE = frozenset({"strong"})
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
    """Those of the fields for which a run with a cache would need the live teacher on the views that are cached."""
    return sorted(reads - set(FIELDS) - LIVE)


def needs_all_views(options) -> bool:
    """Whether IKD takes its class means over all views, which a complete cache alone holds."""
    return options.ikd_means == "all" and options.avg != 0


def decide(s: CacheInputs, speeds: Callable[[], tuple[float, float]]) -> tuple[str, str]:
    """"live", "complete" (build what is missing first) or "grow" (add what each epoch shows), and why, in words.

    Growing costs no more than the live teacher, since a view is computed when it is first needed and never again;
    on a GPU, where an epoch may take less than a second, it would wait for the disk.

    speeds: times the teacher on the device, asked where that decides: images a second as it would run live, and in the
        build of the cache
    """
    on_cpu = s.device_free is None
    fits = s.device_free is None or s.table + HEADROOM <= s.device_free
    if unstored(s.reads):
        return "live", f"live teacher: {', '.join(unstored(s.reads))} are read, and feature maps are not stored"
    if not s.reads - LIVE:
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
    live, build = speeds()
    images = s.left * s.views
    costs = (f"building takes {images:.0f} passes over the images at {build:,.0f} images/s, the live teacher "
             f"{s.epochs} at {live:,.0f} images/s, both timed here")
    if images / build >= s.epochs / live:
        return "live", f"live teacher: {costs}"
    return "complete", f"estimated to be faster: {costs}"


def teacher_speeds(teacher: Classifier, data: Data, precision: Precision, device: torch.device) -> tuple[float, float]:
    """Images a second of the teacher as it runs live, on AHEAD images in the run's precision, and in the build of its
    cache, on larger batches in float32."""
    build = build_batch(data, device, AHEAD)
    try:
        return tuple(_images_per_second(teacher, data, kind, batch_size, device) for kind, batch_size in (
            (replace(precision, compiled=False), AHEAD), (FLOAT32, build)))  # type: ignore[return-value]
    finally:
        teacher.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@torch.inference_mode()
def _images_per_second(teacher, data, precision, batch_size, device):
    """Timed over a few batches; of fewer images where so many do not fit."""
    source = LiveTeacher(teacher, LOGITS, precision)
    try:
        images = torch.zeros(batch_size, *data.image_shape, device=device)
        batch = Batch(images, None, None, None)  # type: ignore[arg-type]  # a teacher sees the images alone
        for number in range(WARM_UP + TIMED):
            if number == WARM_UP:
                torch.cuda.synchronize(device)
                started = time.perf_counter()
            source(batch)
        torch.cuda.synchronize(device)
        return TIMED * batch_size / (time.perf_counter() - started)
    except torch.OutOfMemoryError:
        if batch_size == 1:
            raise
    return _images_per_second(teacher, data, precision, batch_size // 2, device)


def build_batch(data: Data, device: torch.device, batch_size: int) -> int:
    """Views in a batch of the build of a cache; batch_size: the run's own, which the CPU keeps."""
    height, width = data.image_shape[1:]
    return max(1, BUILD_PIXELS // (height * width)) if device.type == "cuda" else batch_size


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
        source = self._open_cache(self.cache, views, stop)
        live = self.reads & LIVE
        return WithStrongView(source, LiveTeacher(self.teacher, live, self.precision)) if live else source

    def _open_cache(self, cache, views, stop):
        fields, device = sorted(self.reads - LIVE), views.labels.device
        assert isinstance(views, TrainViews)  # a cache is planned for countable views alone
        cache.prepare(fields, self.teacher, views, stop)

        def fill(rows):
            cache.fill(fields, rows, self.teacher, views, self.batch_size, stop)

        if self.source == "grow":
            def fill_epoch(plan):
                order, view = (x.numpy() for x in plan[:2])
                fill(np.sort(order * cache.shape[1] + (view if views.flip else view // 2)))

            return CachedTeacher({name: cache.table(name) for name in fields}, views.flip, fill_epoch)
        if cache.left(fields) > 0:
            print(f"filling the teacher cache {cache.folder}: {' and '.join(fields)} of {cache.rows:,} views, "
                  f"{size(cache.bytes(*fields))}, in {cache.arithmetic}; "
                  f"{100 * (1 - cache.left(fields)):.1f}% are there", flush=True)
        fill(None)  # also verifies what is there
        tables = {name: cache.table(name) for name in fields}
        free = free_memory(device)
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
        if reads - LIVE and not unstored(reads):
            widths = {name: getattr(probe, name).shape[1] for name in FIELDS if getattr(probe, name) is not None}
            cache = Cache(options.cache_dir, teacher, data, options.cache_dtype, device, widths)
        source, reason = distributed.broadcast_from_rank0(
            lambda: decide(_inputs(options, cache, reads, device, record),
                           lambda: teacher_speeds(teacher, data, precision, device)))
        facts = {"cache": reason}
        if cache and source != "live":
            facts["cache"] += f" ({options.cache_dtype}, {size(cache.bytes(*(reads - LIVE)))}, {cache.folder})"
            facts["cache"] += "; the second view's outputs are computed live" * bool(reads & LIVE)
    if needs_all_views(options) and source == "live":
        raise UsageError("--ikd_means all takes the class means from the teacher cache, which this run does not use "
                         f"({facts.get('cache', '--teacher_cache off')}): give --teacher_cache on and a method "
                         "that reads no feature maps, or --ikd_means epoch")
    return TeacherPlan(teacher, reads, source, None if source == "live" else cache, facts,
                       build_batch(data, device, options.batch_size), precision if source == "live" else FLOAT32)


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
    return kept(path, lambda: evaluate(teacher, test, precision, what="the teacher's test accuracy"),
                lambda path: Evaluation(**json.loads(Path(path).read_bytes())),
                lambda path, accuracy: write_json(path, accuracy._asdict()))


def batches_ahead(views: TrainData, source: TeacherSource, reads: frozenset[str], batch_size: int) -> int:
    """On how many batches the teacher works at once: 1 on the CPU, where larger batches gain nothing, and for images
    that are read as they are needed; on a GPU as many as make AHEAD images, fewer where they would take much memory."""
    device = views.labels.device
    if device.type != "cuda" or not reads or not isinstance(views, TrainViews):
        return 1
    memory = free_memory(device)
    assert memory is not None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    batch = next(views.batches(tuple(part[:batch_size] for part in views.plan(0, "1", "train", 1)), batch_size))
    source(batch)
    image = (torch.cuda.max_memory_allocated(device) - before) / len(batch.labels)
    return fitting_batches(image, batch_size, memory)


def fitting_batches(image: float, batch_size: int, memory: int) -> int:
    """How many batches at once; image, memory: bytes that the teacher takes for an image, with all that it holds
    meanwhile, and that are free."""
    return max(1, int(min(AHEAD, MEMORY_AHEAD * memory / max(image, 1))) // batch_size)


def _inputs(options, cache, reads, device, record):
    # Means over all views exist in a complete cache alone: `auto` has no choice then.
    asked = "on" if needs_all_views(options) else options.teacher_cache
    fields = sorted(reads - LIVE)
    needed, free = cache.disk(fields) if cache else (0, 0)
    return CacheInputs(
        asked, reads, record.earlier.decisions.get("teacher_source"), cache.left(fields) if cache else 1.0,
        record.epochs_left("train", options.epochs), cache.shape[1] if cache else 0, needed, free,
        cache.bytes(*fields) if cache else 0, free_memory(device), cache is None or cache.writable)
