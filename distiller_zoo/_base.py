"""The interface of a distillation method, and of every other term of a run's loss.

A run minimises the sum of its terms' losses. A term is a module that knows its own weight:
its trainable parts are its parameters, its state its state dict. A method is a term that
`--distill` can name; each lives in one file of this folder and is found by itself.
"""
from argparse import Namespace
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dataset.views import Batch
from helper.util.errors import UserError
from models import Classifier, Outputs


class MethodError(UserError):
    """A method that cannot serve this pair of networks, or these options; the message says the cure."""


@dataclass(frozen=True)
class Setup:
    """All that a method may know when it is built.

    student, teacher: outputs of both networks for the same few images, for their shapes
    student_name, teacher_name: the models' names, for messages
    labels: (n,) int64, the labels of the training set
    num_classes: the number of classes
    teacher_classifier: (C, width), the weight of the teacher's last layer; None where it has no such layer
    teacher_classes: (name, f) -> f(the teacher's pooled vectors of the training images as they are, (n, width), their
        labels, C), a (C, C) tensor that is computed once for a teacher and a data set, and kept under the name
    """

    student: Outputs
    teacher: Outputs
    student_name: str
    teacher_name: str
    labels: Tensor
    num_classes: int
    teacher_classifier: Tensor | None = None
    teacher_classes: Callable[[str, Callable[[Tensor, Tensor, int], Tensor]], Tensor] | None = None


class Flag(NamedTuple):
    """A command-line flag of a method: `--name`, its default, type, help and choices."""

    name: str
    default: Any
    type: Callable[[str], Any]
    help: str
    choices: tuple | None = None


class Term(nn.Module):
    """One summand of a run's loss, already weighted.

    reads: what it reads of the teacher, names of fields of Outputs; of the student it may read the same
        fields, and the logits
    reads_student: whether it needs the student's outputs at all
    active: False where its weight is 0, so that it is left out of the run's loss
    of_labels: whether it is a loss on the labels alone, without the teacher
    whole_batch: whether its loss relates the samples of a batch to each other, rather than being a mean over them:
        with several processes it then gets all of the batch (but no images), on each of them
    uncapturable: why its forward cannot be part of a CUDA graph, in words; None where it can
    """

    reads: frozenset[str] = frozenset()
    reads_student = True
    active = True
    of_labels: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False
    uncapturable: ClassVar[str | None] = None

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The weighted loss of a batch, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward")

    def mode(self) -> Hashable:
        """What decides in Python how `forward` computes, beyond its arguments' shapes: a captured step repeats
        the mode that it was captured in. Values that change while training are tensors, or part of this."""
        return None

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Called before each epoch, the first being 1.

        generator: on the run's device, seeded by the run and the epoch alone: a term that draws
        random numbers draws them from it, so that a resumed run draws the same ones. It is the same on all
            processes of a run.
        """

    def end_epoch(self, epoch: int) -> None:
        """Called after each epoch's last step. With several processes, what a term has collected of its own share is
        brought together here (helper.util.distributed.all_reduce_sum)."""


@dataclass(frozen=True)
class Stage:
    """What a method trains before the student's own epochs.

    name: names the stage in the log
    term: its loss
    modules: the method's parts that it trains, frozen before and after
    trains_features: whether it trains the student's layers before the classifier
    learning_rate: its learning rate, for a student's name and the run's own learning rate
    weight: of its loss, for the run's first lines
    """

    name: str
    term: Term
    modules: tuple[nn.Module, ...]
    trains_features: bool
    learning_rate: Callable[[str, float], float] = lambda student_name, learning_rate: learning_rate
    weight: float = 1.0


class Method(Term):
    """A distillation method, built from the set-up and the parsed flags.

    name: what `--distill` calls it
    paper: its authors, title and venue
    formula: its loss, in one line
    flags: its own flags with their published defaults
    alpha: default of `-a`; None where the method has no use for it
    alpha_adds_kd: whether `-a` weights an added KD loss (else it is the method's own)
    beta: default of `-b`; None where the method has no use for it
    beta_published: whether that default is the published one
    ramp: default of `--ramp`, the epochs over which its weight grows
    in_main: whether it has a loss after its first stage
    in_published_code: whether the published IKD code has it; those that it lacks are later literature
    stage_reads: what its first stage reads of both networks, beside `reads`
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]
    flags: ClassVar[tuple[Flag, ...]] = ()
    alpha: ClassVar[float | None] = 0.0
    alpha_adds_kd: ClassVar[bool] = True
    beta: ClassVar[float | None] = 1.0
    beta_published: ClassVar[bool] = True
    ramp: ClassVar[int] = 0
    in_main: ClassVar[bool] = True
    in_published_code: ClassVar[bool] = True
    stage_reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, setup: Setup, options: Namespace):
        """Raises MethodError where one of the networks does not offer what the method reads of both."""
        super().__init__()
        for network, outputs in ((setup.student_name, setup.student), (setup.teacher_name, setup.teacher)):
            # The second view is the data's to give.
            missing = [name for name in sorted((self.reads | self.stage_reads) - {"strong"}) if not outputs.holds(name)]
            if missing:
                raise MethodError(f"{self.name} reads {' and '.join(missing)} of both networks, and {network} does not "
                                  "offer that: take another network, or a method that reads logits alone, such as "
                                  "kd or dkd")
        self.active = self.in_main and (options.beta != 0 or (options.alpha != 0 and not self.alpha_adds_kd))

    @classmethod
    def resolve(cls, options: Namespace) -> None:
        """Fill in what was not given: `-a`, `-b` and `--ramp` get the method's defaults.

        Raises MethodError for one that the method has no use for.
        """
        if options.ramp is None:
            options.ramp = cls.ramp
        elif options.ramp and not cls.in_main:
            raise MethodError(f"{cls.name} has no use for --ramp: its loss is that of a first stage; leave it out")
        for flag, default in (("alpha", cls.alpha), ("beta", cls.beta)):
            if getattr(options, flag) is None:
                setattr(options, flag, 0.0 if default is None else default)
            elif default is None and getattr(options, flag) != 0:
                raise MethodError(f"{cls.name} has no use for -{flag[0]}: leave it out or give 0")

    @staticmethod
    def growth(epoch: int, ramp: int) -> float:
        """What its weight is multiplied by in an epoch, the first being 1, with `--ramp`, 1 or more."""
        return min(epoch / ramp, 1.0)

    def stage(self, student: Classifier) -> Stage | None:
        """What is to be trained first, for `--init_epochs`; None for most methods."""
        return None
