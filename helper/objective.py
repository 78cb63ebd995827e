"""What a run minimises: the sum of its terms."""
from collections.abc import Iterator

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
    """weight * cross-entropy with the labels, batch mean."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight
        self.active = weight != 0

    def forward(self, student, teacher, batch):
        return self.weight * F.cross_entropy(student.logits.float(), batch.labels)


class Objective(nn.Module):
    """Named terms; its parameters are theirs (regressors, embeddings), its state dict theirs (banks, class means)."""

    def __init__(self, terms: dict[str, Term]):
        super().__init__()
        self.terms = nn.ModuleDict(terms)
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
        return {name: self._of_whole(term, student, teacher, batch) if term.whole_batch else
                _weighted(term(student, teacher, batch), batch) for name, term in self.items()}

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

    Raises UsageError where nothing is left.
    """
    terms = {"ce": CrossEntropy(options.gamma), method.name: method}
    if method.alpha_adds_kd and options.alpha != 0:
        terms["kd"] = KD(setup, options)
    if options.avg != 0:
        terms["ikd"] = ikd = IKD(setup.num_classes, options.intra_T, options.avg)
        if options.ikd_means == "smooth":
            ikd.fix_means(smoothed_labels(setup.num_classes, options.intra_T), torch.ones(setup.num_classes))
    terms = {name: term for name, term in terms.items() if term.active}
    if not terms:
        raise UsageError("every weight is 0, so there is nothing to minimise: give -r, -a, -b or --avg a value above 0")
    return Objective(terms)
