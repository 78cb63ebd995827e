"""The training loop: plain, and the same for teachers, students and a method's first stage."""
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dataset import Batch, EvalImages, TrainViews
from helper.cuda_graph import CapturedSteps, side_stream
from helper.epochs import Progress
from helper.evaluation import evaluate
from helper.meters import Meters
from helper.objective import Objective
from helper.teacher.cache import CachedTeacher
from helper.util import distributed
from helper.util.errors import RunError
from helper.util.nested import each
from helper.util.seeding import derive_seed
from models import Classifier, Outputs
from models.precision import FLOAT32, Precision


class LiveTeacher:
    """A frozen teacher that sees the student's views; gives the fields that are read, and no more."""

    def __init__(self, network: Classifier, reads: frozenset[str], precision: Precision = FLOAT32):
        self.network, self.reads, self.precision = precision.prepare(network.eval()), reads, precision

    def start_epoch(self, plan: tuple[Tensor, Tensor]) -> None:
        """Called before an epoch with its plan (dataset.epoch_plan); nothing to prepare here."""

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        return self.precision.outputs(self.network, batch.images, self.reads) if self.reads else Outputs()


@dataclass
class Phase:
    """A stretch of training: the student's own epochs, a teacher's, or a method's first stage.

    name: "train", or the stage's name
    teacher: batch -> the outputs that the objective reads; LiveTeacher or CachedTeacher
    rate: epoch -> learning rate
    modules: what a checkpoint must hold to go on, by name
    evaluates: whether each epoch ends with a test
    precision: how the student is run, and tested
    ahead: on how many batches the teacher works at once
    captured: whether a step runs as a CUDA graph (see cuda_graph.py)
    """

    name: str
    student: Classifier
    teacher: LiveTeacher | CachedTeacher
    objective: Objective
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    epochs: int
    modules: dict[str, nn.Module] = field(default_factory=dict)
    evaluates: bool = True
    precision: Precision = FLOAT32
    ahead: int = 1
    captured: bool = False

    def __post_init__(self):
        self.forward = Forward(self.student, self.objective, self.precision)


class Forward(nn.Module):
    """A step's forward pass, one module, as DistributedDataParallel takes it."""

    def __init__(self, student: Classifier, objective: Objective, precision: Precision):
        super().__init__()
        self.student, self.objective, self.precision = student, objective, precision

    def forward(self, batch: Batch, teacher: Outputs) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The total loss; each term's, and the student's logits (B, C), without a gradient."""
        student = Outputs()
        if self.objective.reads_student:
            student = self.precision.outputs(self.student, batch.images, self.objective.reads | {"logits"})
        losses = self.objective(student, teacher, batch)
        logits = None if student.logits is None else student.logits.detach()
        return sum(losses.values()), {name: loss.detach() for name, loss in losses.items()}, logits


def train_step(phase: Phase, batch: Batch, teacher: Outputs, meters: Meters) -> None:
    """One step, given what the teacher says of its batch. Nothing here waits for the device."""
    total, losses, logits = phase.forward(batch, teacher)
    phase.optimizer.zero_grad(set_to_none=True)
    total.backward()
    phase.optimizer.step()
    meters.update(losses, total.detach(), logits, batch.labels, batch.size)


def distill_batches(phase: Phase, views: TrainViews, plan: tuple[Tensor, Tensor],
            batch_size: int) -> Iterator[tuple[Batch, Outputs]]:
    """An epoch's batches with the teacher's outputs for each, of which it makes `phase.ahead` batches' at once.

    batch_size: of the whole batch, of which each process gets its share
    """
    own, left = batch_size // distributed.world_size(), len(views)
    for several in views.batches(distributed.own_share(plan, batch_size), own * phase.ahead):
        outputs = phase.teacher(several)
        for i in range(0, len(several.labels), own):
            def part(values, i=i):
                return values[i : i + own]

            whole = min(left, batch_size) if distributed.world_size() > 1 else None
            yield Batch(*each(part, several))._replace(whole=whole), Outputs(*each(part, outputs))
            left -= batch_size


def fit(phase: Phase, views: TrainViews, test: EvalImages, run, options) -> None:
    """Train the phase's remaining epochs; `run` (see run.py) records each and can be gone on from.

    Raises RunError when a loss is not finite.
    """
    device = views.labels.device
    first = run.resume(phase) + 1
    plain = phase.forward
    phase.forward = distributed.wrap_ddp(plain)
    progress = Progress(phase, first, -(-len(views) // options.batch_size), options.print_freq)
    meters = Meters(list(phase.objective.terms), device)
    take, where = (CapturedSteps(train_step, phase), side_stream) if phase.captured else (train_step, nullcontext)
    for epoch in range(first, phase.epochs + 1):
        started = time.perf_counter()
        set_rate(phase.optimizer, phase.rate(epoch))
        purpose = (options.seed, options.trial, phase.name, epoch)
        # Dropout must not hide the same neurons of every process's images.
        torch.manual_seed(derive_seed(*purpose, "torch", *([distributed.rank()] if distributed.rank() else [])))
        phase.objective.start_epoch(epoch, torch.Generator(device).manual_seed(derive_seed(*purpose, "terms")))
        phase.student.train(phase.objective.reads_student)
        phase.objective.train()
        meters.reset()
        plan = views.plan(*purpose)
        phase.teacher.start_epoch(plan)
        with where():
            for step, (batch, teacher) in enumerate(distill_batches(phase, views, plan, options.batch_size), 1):
                take(phase, batch, teacher, meters)
                if distributed.world_size() == 1 or step % distributed.ASK_EVERY == 0:
                    run.stop_if_asked()
                if step % options.tb_freq == 0:
                    run.step_scalars(phase, (epoch - 1) * progress.steps + step, meters.read())
                progress.step(epoch, step, meters)
        averages = meters.read(phase.objective.reads_student)
        phase.objective.end_epoch(epoch)
        distributed.average_batch_norm_statistics(phase.forward)
        seconds = time.perf_counter() - started
        tested = evaluate(phase.student, test, phase.precision) if phase.evaluates else None
        if tested and not math.isfinite(tested.loss):
            raise RunError(f"the test loss is not finite after epoch {epoch}: lower the learning rate; "
                           "the last good checkpoint is kept")
        run.end_epoch(phase, epoch, averages, tested, seconds, len(views) / seconds)
        progress.epoch(epoch, averages, tested, run.best, seconds, len(views) / seconds)
    phase.optimizer.zero_grad(set_to_none=True)
    phase.forward = plain


def sgd(parameters: Iterable[Tensor], options) -> torch.optim.SGD:
    """The published optimiser: momentum, and weight decay on every parameter."""
    parameters = list(parameters)
    # On CUDA the fused kernel, which alone takes its rate from the device, as a captured step has it.
    return torch.optim.SGD(parameters, lr=options.learning_rate, momentum=options.momentum,
                           weight_decay=options.weight_decay, fused=parameters[0].is_cuda or None)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of every group; a tensor, which a captured step reads, stays where it is."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
