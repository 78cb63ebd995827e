"""What a run minimises: the sum of its terms."""
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import Batch
from distiller_zoo import Method, Setup, Term
from distiller_zoo.ikd import IKD, smoothed_labels
from distiller_zoo.kd import KD
from helper.util import distributed
from helper.util.errors import UsageError
from helper.util.nested import each
from models import Outputs


class CrossEntropy(Term):
    """weight * cross-entropy with the labels, batch mean; with `strong` summed over both views."""

    of_labels = True

    def __init__(self, weight: float = 1.0, strong: bool = False):
        super().__init__()
        self.weight = weight
        self.active = weight != 0
        self.reads = frozenset({"strong"} if strong else ())

    def forward(self, student, teacher, batch):
        views = [student.logits, student.strong] if self.reads else [student.logits]
        return self.weight * sum(F.cross_entropy(logits.float(), batch.labels) for logits in views)


class Objective(nn.Module):
    """Named terms; its parameters are theirs (regressors, embeddings), its state dict theirs (banks, class means).

    growth: of the terms whose weight grows, epoch -> what it is multiplied by
    """

    def __init__(self, terms: dict[str, Term], growth: dict[str, Callable[[int], float]] | None = None):
        super().__init__()
        self.terms, self.growth = nn.ModuleDict(terms), growth or {}
        for name in self.growth:  # tensors, so that they can change beneath a captured step
            self.register_buffer(f"{name}_share", torch.tensor(1.0), persistent=False)
        self.reads = frozenset().union(*(term.reads for term in terms.values()))
        self.reads_student = any(term.reads_student for term in terms.values())

    def items(self) -> Iterator[tuple[str, Term]]:
        """The terms and their names; nn.ModuleDict forgets that they are terms."""
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            yield name, term

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Each term's weighted loss, a scalar, by its name.

        With several processes each has its share of the batch: the mean of their losses is that of the whole.
        """
        losses = {name: self._of_whole(term, student, teacher, batch) if term.whole_batch else
                  _weighted(term(student, teacher, batch), batch) for name, term in self.items()}
        return losses | {name: getattr(self, f"{name}_share") * losses[name] for name in self.growth}

    @staticmethod
    def _of_whole(term, student, teacher, batch):
        if batch.whole is None:
            return term(student, teacher, batch)

        def all_rows(rows):
            return distributed.all_gather_rows(rows, batch.whole)

        read = [Outputs(**dict(zip(fields, each(all_rows, (getattr(out, name) for name in fields)), strict=True)))
                for out, fields in ((student, sorted(term.reads | {"logits"})), (teacher, sorted(term.reads)))]
        return term(*read, Batch(None, *each(all_rows, batch[1:4])))  # type: ignore[arg-type]

    def mode(self) -> tuple:
        """The modes of the terms (see Term.mode)."""
        return tuple(term.mode() for _, term in self.items())

    def uncapturable(self) -> str | None:
        """Why a step cannot be captured as a CUDA graph, in words; None where it can."""
        reasons = [f"{name} {term.uncapturable}" for name, term in self.items() if term.uncapturable]
        return "; ".join(reasons) or None

    def start_epoch(self, epoch, generator):
        for name, share in self.growth.items():
            getattr(self, f"{name}_share").fill_(share(epoch))
        for _, term in self.items():
            term.start_epoch(epoch, generator)

    def end_epoch(self, epoch):
        for _, term in self.items():
            term.end_epoch(epoch)


def _weighted(loss, batch):
    """A loss that is a mean over this process's share, so that the mean over the processes is that over the batch."""
    share = len(batch.labels) * distributed.world_size() / batch.size
    return loss if share == 1 else share * loss


def student_objective(method: Method, setup: Setup, options) -> Objective:
    """r·CE + the method + a·KD where the method leaves `-a` to it + avg·IKD; terms of weight 0 are left out.

    The cross-entropy is that of both views where another term reads the second.
    Raises UsageError where nothing is left, or nothing for one of DOT's two gradients.
    """
    terms: dict[str, Term] = {method.name: method}
    if method.alpha_adds_kd and options.alpha != 0:
        terms["kd"] = KD(setup, options)
    if options.avg != 0:
        terms["ikd"] = ikd = IKD(setup.num_classes, options.intra_T, options.avg)
        if options.ikd_means == "smooth":
            ikd.fix_means(smoothed_labels(setup.num_classes, options.intra_T), torch.ones(setup.num_classes))
    strong = any("strong" in term.reads for term in terms.values() if term.active)
    terms = {"ce": CrossEntropy(options.gamma, strong), **terms}
    terms = {name: term for name, term in terms.items() if term.active}
    if not terms:
        raise UsageError("every weight is 0, so there is nothing to minimise: give -r, -a, -b or --avg a value above 0")
    if options.optimizer == "dot":
        if len({term.of_labels for term in terms.values()}) < 2:
            raise UsageError("--optimizer dot balances the cross-entropy and the distillation: give both -r and the "
                             "method's weight a value above 0, or --optimizer sgd")
        if distributed.world_size() > 1:
            raise UsageError("--optimizer dot is of a single process: start one, or give --optimizer sgd")
    growth = {method.name: lambda epoch: method.growth(epoch, options.ramp)} if options.ramp and method.active else {}
    return Objective(terms, growth)
