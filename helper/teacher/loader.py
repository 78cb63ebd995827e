"""The training set's batches, each with the teacher's outputs for it."""
from collections.abc import Iterator
from contextlib import closing
from operator import itemgetter

from dataset import Batch, TrainData, TrainViews
from helper.teacher.source import TeacherSource
from helper.util import distributed
from helper.util.nested import each
from models import Outputs


class DistillLoader:
    """An epoch's batches with the teacher's outputs, as the loop reads them; len(loader) is the steps of an epoch.

    views: the training set
    batch_size: of the whole batch, of which each process gets its share
    ahead: on how many batches the teacher works at once
    deferred: whether batches hold no more than index and view, and no outputs of the teacher, until `complete`: a
        captured step does that itself, and so has no more to be copied to it. For views in memory and one process
    """

    def __init__(self, views: TrainData, teacher: TeacherSource, batch_size: int, ahead: int = 1,
                 deferred: bool = False):
        self.views, self.teacher, self.batch_size, self.ahead = views, teacher, batch_size, ahead
        self.deferred = deferred

    def __len__(self) -> int:
        return -(-len(self.views) // self.batch_size)

    @property
    def device(self):
        """Where the batches are."""
        return self.views.labels.device

    def epoch(self, seed: int, trial: str, phase: str, epoch: int) -> Iterator[tuple[Batch, Outputs]]:
        """The batches of an epoch, in the order of its plan, a pure function of the arguments."""
        plan = self.views.plan(seed, trial, phase, epoch)
        self.teacher.start_epoch(plan)
        if self.deferred:
            for index, view in zip(*(part.to(self.device).split(self.batch_size) for part in plan), strict=True):
                yield Batch(None, None, index, view), Outputs()  # type: ignore[arg-type]
            return
        own, left = self.batch_size // distributed.world_size(), len(self.views)
        plan = distributed.own_share(plan, self.batch_size)
        # Closed also when a step raises: worker processes that read images end with it.
        with closing(self.views.batches(plan, own * self.ahead)) as batches:
            for several in batches:
                outputs = self.teacher(several)
                for i in range(0, len(several.labels), own):
                    part = itemgetter(slice(i, i + own))
                    whole = min(left, self.batch_size) if distributed.world_size() > 1 else None
                    yield Batch(*each(part, several))._replace(whole=whole), Outputs(*each(part, outputs))
                    left -= self.batch_size

    def complete(self, batch: Batch, outputs: Outputs) -> tuple[Batch, Outputs]:
        """A batch of `epoch` with all that it holds; itself where it does already."""
        if not self.deferred:
            return batch, outputs
        assert isinstance(self.views, TrainViews) and batch.view is not None
        whole = self.views.batch(batch.index, batch.view)
        return whole, self.teacher(whole)
