"""One training step, and what it needs: the same for students, teachers and a method's first stage."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dataset import Batch
from helper.cuda_graph import CapturedStep
from helper.dot import DOT
from helper.meters import Meters
from helper.objective import Objective
from helper.teacher.loader import DistillLoader
from helper.util import distributed
from helper.util.seeding import derive_seed
from models import Classifier, Outputs
from models.precision import FLOAT32, Precision


class Forward(nn.Module):
    """A step's forward pass as one module, as DistributedDataParallel takes it."""

    def __init__(self, student: Classifier, objective: Objective, precision: Precision):
        super().__init__()
        self.student, self.objective, self.precision = student, objective, precision

    def forward(self, batch: Batch, teacher: Outputs) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The total loss, each term's, and the student's logits (B, C) without a gradient."""
        student = Outputs()
        if self.objective.reads_student:
            reads = self.objective.reads | {"logits"}
            student = self.precision.outputs(self.student, batch.images, reads, batch.strong)
        losses = self.objective(student, teacher, batch)
        return sum(losses.values()), losses, None if student.logits is None else student.logits.detach()


@dataclass
class Phase:
    """A stretch of training: the student's own epochs, a teacher's, or a method's first stage.

    name: "train", or the stage's name
    loader: the batches, with the teacher's outputs
    learning_rate: epoch -> learning rate
    seeds: the run's seed and its trial
    modules: what a checkpoint must hold to continue, by name
    evaluates: whether each epoch ends with a test
    precision: how the student is run, and tested
    captured: whether a step runs as a CUDA graph (see cuda_graph.py)
    """

    name: str
    student: Classifier
    loader: DistillLoader
    objective: Objective
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    epochs: int
    seeds: tuple[int, str]
    modules: dict[str, nn.Module] = field(default_factory=dict)
    evaluates: bool = True
    precision: Precision = FLOAT32
    captured: bool = False

    def __post_init__(self):
        self.forward: nn.Module = Forward(self.student, self.objective, self.precision)
        if self.precision.compiled:
            self.objective.compile()

    def meters(self) -> Meters:
        """The averages that its steps update."""
        meters = Meters(list(self.objective.terms), self.loader.device)
        if self.precision.compiled:
            meters.compile()
        return meters

    def start_epoch(self, epoch: int) -> None:
        """Set the learning rate, the random numbers and the modules' modes."""
        set_learning_rate(self.optimizer, self.learning_rate(epoch))
        purpose = (*self.seeds, self.name, epoch)
        # Dropout must not hide the same neurons of every process's images.
        rank = [distributed.rank()] if distributed.rank() else []
        torch.manual_seed(derive_seed(*purpose, "torch", *rank))
        generator = torch.Generator(self.loader.device).manual_seed(derive_seed(*purpose, "terms"))
        self.objective.start_epoch(epoch, generator)
        self.student.train(self.objective.reads_student)
        self.objective.train()

    def batches(self, epoch: int):
        """The batches of an epoch, each with the teacher's outputs."""
        return self.loader.epoch(*self.seeds, self.name, epoch)

    def end_epoch(self, epoch: int) -> None:
        """Bring together what the processes have each collected."""
        self.objective.end_epoch(epoch)
        distributed.average_batch_norm_statistics(self.forward)

    def close(self) -> None:
        """Let go of the gradients, and of what shares them between processes."""
        self.optimizer.zero_grad(set_to_none=True)
        self.forward = Forward(self.student, self.objective, self.precision)


Step = Callable[[Phase, Batch, Outputs, Meters], None]


def train_step(phase: Phase, batch: Batch, teacher: Outputs, meters: Meters) -> None:
    """One step, given the teacher's outputs for its batch. Nothing here waits for the device."""
    total, losses, logits = phase.forward(batch, teacher)
    phase.optimizer.zero_grad(set_to_none=True)
    total.backward()
    phase.optimizer.step()
    meters.update(losses, total, logits, batch.labels, batch.size)


def dot_step(phase: Phase, batch: Batch, teacher: Outputs, meters: Meters) -> None:
    """One step of DOT: the gradients of the loss on the labels and of all others, of one forward pass."""
    total, losses, logits = phase.forward(batch, teacher)
    assert isinstance(phase.optimizer, DOT)
    task, distillation = (torch.stack([losses[name] for name, term in phase.objective.items()
                                       if term.of_labels == of_labels]).sum() for of_labels in (True, False))
    phase.optimizer.step(*phase.optimizer.backward(task, distillation))
    meters.update(losses, total, logits, batch.labels, batch.size)


def choose_step(phase: Phase) -> Step:
    """The way in which the phase's steps run: plain, with gradients shared by several processes, or captured."""
    phase.forward = distributed.wrap_ddp(phase.forward)
    step = dot_step if isinstance(phase.optimizer, DOT) else train_step
    return CapturedStep(step, phase) if phase.captured else step


def sgd(parameters: Iterable[Tensor], options) -> torch.optim.SGD:
    """The published optimiser: momentum, and weight decay on every parameter."""
    parameters = list(parameters)
    # On CUDA the fused kernel, which alone reads its learning rate from the device, as a captured step needs.
    return torch.optim.SGD(parameters, lr=options.learning_rate, momentum=options.momentum, nesterov=options.nesterov,
                           weight_decay=options.weight_decay, fused=parameters[0].is_cuda or None)


def make_optimizer(parameters: Iterable[Tensor], options) -> torch.optim.Optimizer:
    """The optimizer of a network's own epochs."""
    if getattr(options, "optimizer", "sgd") == "sgd":
        return sgd(parameters, options)
    return DOT(parameters, options.learning_rate, options.momentum, options.weight_decay, options.dot_delta)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Of every group; a tensor, which a captured step reads, stays where it is."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
