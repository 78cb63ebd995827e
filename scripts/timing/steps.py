"""What bench.py and verify_gpu.py time: endless streams of training steps on random images, ours and in the published
style, and the process that takes turns with them."""
import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F

import dataset
from dataset.cifar100 import MEAN, STD
from dataset.views import views_of
from distiller_zoo import METHODS
from helper.build import make_setup
from helper.cli import student_options
from helper.objective import student_objective
from helper.schedule import schedule
from helper.step import Phase, choose_step, make_optimizer
from helper.teacher.loader import DistillLoader
from helper.teacher.plan import LIVE, batches_ahead, unstored
from helper.teacher.source import CachedTeacher, LiveTeacher, TeacherSource, WithStrongView
from models import model_dict
from models.precision import Precision

IMAGES = 1000
DKD_IKD = ("--distill", "dkd", "--avg", "6.5", "--intra_T", "1")
# How many images the terms that know all of the training set take it to have, as CIFAR-100.
SAMPLES = 50_000


@dataclass(frozen=True)
class Variant:
    """One way to train: what it uses."""

    cached: bool = False
    channels_last: bool = False
    bf16: bool = False
    published: bool = False
    captured: bool = False
    compiled: bool = False

    def __str__(self):
        if self.published:
            return "published style"
        used = {"channels_last": self.channels_last, "bf16": self.bf16, "compiled": self.compiled,
                "one CUDA graph": self.captured}
        return ", ".join(["ours", "cached teacher" if self.cached else "live teacher", *(w for w in used if used[w])])


def random_data(classes: int, images: int = IMAGES) -> dataset.Data:
    """Random images in CIFAR-100's format."""
    generator = torch.Generator().manual_seed(0)
    split = dataset.Split(torch.randint(256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8),
                          torch.randint(classes, (images,), generator=generator))
    return dataset.Data("random", tuple(map(str, range(classes))), MEAN, STD, True, split, split)


def our_phase(variant: Variant, a, images: int = IMAGES, loss: Sequence[str] = DKD_IKD) -> Phase:
    """The project's own training of a student on random images.

    a: the names of teacher and student, batch_size, classes, device; loss: the flags that say which
    """
    device, data = torch.device(a.device), random_data(a.classes, images)
    student, teacher = (model_dict[name](num_classes=a.classes) for name in (a.student, a.teacher))
    options = student_options(["--path_t", "none", "--model_s", a.student, *loss])
    setup = replace(make_setup(student, teacher, data, lambda name, compute: 1 - torch.eye(a.classes)),
                    labels=torch.arange(SAMPLES) % a.classes)
    objective = student_objective(METHODS[options.distill](setup, options), setup, options).to(device)
    precision = Precision(variant.bf16, variant.channels_last, variant.compiled)
    precision.prepare(student.to(device)).train()
    reads = objective.reads - LIVE if variant.cached and not unstored(objective.reads) else frozenset()
    live = LiveTeacher(teacher.to(device).requires_grad_(False), objective.reads - reads, precision)
    source: TeacherSource = live
    if reads:
        tables = {name: torch.randn(images, len(views_of(True)), getattr(setup.teacher, name).shape[1],
                                    dtype=torch.float16, device=device) for name in reads}
        cached = CachedTeacher(tables, flip=True)
        source = WithStrongView(cached, live) if objective.reads & LIVE else cached
    views = data.train_views(device, "strong" in objective.reads)
    loader = DistillLoader(views, source, a.batch_size, batches_ahead(views, source, objective.reads, a.batch_size),
                           deferred=variant.captured and source.gathers_on(device))
    trained = [p for p in (*student.parameters(), *objective.parameters()) if p.requires_grad]
    return Phase("train", student, loader, objective, make_optimizer(trained, options), schedule(options), 1,
                 (0, "1"), precision=precision, captured=variant.captured)


def steps_of_phase(phase: Phase, batch_size: int):
    """An endless stream of a phase's steps on full batches, each made by the project's own train_step."""
    step, meters, epoch = choose_step(phase), phase.meters(), 0
    while True:
        epoch += 1
        phase.start_epoch(epoch)
        for batch, outputs in phase.batches(epoch):
            if len(batch.index) == batch_size:
                step(phase, batch, outputs, meters)
                yield
        phase.end_epoch(epoch)


class RandomImages(torch.utils.data.Dataset):
    """Images for DataLoader workers, transformed one by one."""

    def __init__(self, data):
        from torchvision import transforms
        self.images = data.train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.train.labels.tolist()
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(MEAN, STD)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        from PIL import Image
        return self.transform(Image.fromarray(self.images[i])), self.labels[i], i


def published_style_steps(a):
    """The same training in the published style: transforms in DataLoader workers, eager float32, the target
    masked by -1000, class sums and class means by a loop over samples, `.item()` each step."""
    device, data = torch.device(a.device), RandomImages(random_data(a.classes))
    student, teacher = (model_dict[name](num_classes=a.classes).to(device) for name in (a.student, a.teacher))
    student.train()
    teacher.eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    sums, counts = torch.zeros(a.classes, a.classes, device=device), torch.zeros(a.classes, device=device)
    total, epoch = 0.0, 0
    while True:
        epoch += 1
        loader = torch.utils.data.DataLoader(data, a.batch_size, shuffle=True, drop_last=True,
                                             num_workers=min(8, os.cpu_count() or 1))
        for images, labels, _ in loader:
            images, labels = images.to(device), labels.to(device)
            z_s = student(images, is_feat=True)[1]
            with torch.no_grad():
                z_t = teacher(images, is_feat=True)[1]
            loss = F.cross_entropy(z_s, labels) + _masked_dkd(z_s, z_t, labels, 1.0, 8.0, 4.0)
            if epoch == 1:
                for i in range(len(labels)):
                    sums[labels[i]] += z_t[i]
                    counts[labels[i]] += 1
            else:
                means = torch.stack([sums[y] / counts.clamp(min=1) for y in labels])
                loss = loss + 6.5 * F.kl_div(z_s.log_softmax(1), means.softmax(1), reduction="batchmean")
            total += loss.item() + (z_s.argmax(1) == labels).float().mean().item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def _masked_dkd(z_s, z_t, labels, alpha, beta, temperature):
    mask = F.one_hot(labels, z_s.shape[1]).bool()
    p_s, p_t = ((z / temperature).softmax(1) for z in (z_s, z_t))
    binary = [torch.stack([(p * mask).sum(1), (p * ~mask).sum(1)], 1) for p in (p_s, p_t)]
    tckd = F.kl_div(binary[0].log(), binary[1], reduction="batchmean")
    others = [z / temperature - 1000.0 * mask for z in (z_s, z_t)]
    nckd = F.kl_div(others[0].log_softmax(1), others[1].softmax(1), reduction="batchmean")
    return (alpha * tckd + beta * nckd) * temperature**2


def steps_of(variant: Variant, a) -> Iterator[None]:
    """The variant's endless stream of steps; a: see our_phase."""
    return published_style_steps(a) if variant.published else steps_of_phase(our_phase(variant, a), a.batch_size)


def seconds_of(steps: Iterator[None], number: int, device: torch.device, clock=time.perf_counter) -> float:
    """Seconds a step, of so many steps: by CUDA events, on the CPU by `clock`."""
    if device.type == "cpu":
        started = clock()
        for _ in islice(steps, number):
            pass
        return (clock() - started) / number
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in islice(steps, number):
        pass
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / number


def profiled(steps: Iterator[None], number: int, device: torch.device):
    """What PyTorch's profiler has seen of so many steps, by operator and kernel."""
    with torch.profiler.profile() as profiler:
        seconds_of(steps, number, device)
    return profiler.key_averages()


@contextlib.contextmanager
def workers(variants: Sequence[Variant], a) -> Iterator[list[Connection]]:
    """A pipe to a process for each variant: sent a number of steps, it takes them, and answers with seconds a step and
    its peak memory in MiB. All end with the block."""
    context, pipes, processes = multiprocessing.get_context("spawn"), [], []
    try:
        for variant in variants:
            pipe, end = context.Pipe()
            pipes.append(pipe)
            processes.append(context.Process(target=worker, args=(end, variant, a)))
            processes[-1].start()
            end.close()  # so that reading from a process that has died raises
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def worker(pipe: Connection, variant: Variant, a) -> None:
    """One process of `workers`, until its pipe is closed."""
    torch.manual_seed(0)
    device = torch.device(a.device)
    torch.backends.cudnn.benchmark = True  # as in training
    steps = steps_of(variant, a)
    with contextlib.suppress(EOFError):
        while True:
            seconds = seconds_of(steps, pipe.recv(), device)
            peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else (
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            pipe.send((seconds, peak))
