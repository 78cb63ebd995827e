"""Averages over an epoch, kept on the device: updating them does not wait for it."""
from typing import NamedTuple

import torch
from torch import Tensor

from helper.util import distributed
from helper.util.errors import RunError

NEVER = torch.iinfo(torch.int64).max


class Averages(NamedTuple):
    """loss: the total; losses: each term's, weighted; top1, top5: accuracy in percent (0 without logits)."""

    loss: float
    losses: dict[str, float]
    top1: float
    top5: float


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(2,) int64: how many labels have the largest logit, and one of the five largest; logits (B, C)."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([top[:, 0].sum(), top.sum()])


class Meters:
    """Sums over an epoch's samples of every term's loss, the total and the correct.

    names: of the terms; device: where the losses are
    """

    def __init__(self, names: list[str], device: torch.device):
        self.names = [*names, "total"]
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self.correct = torch.zeros(2, dtype=torch.int64, device=device)
        self.samples = torch.zeros((), dtype=torch.int64, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        # The first step at which each loss was not finite.
        self.first_bad = torch.full((len(self.names),), NEVER, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Begin anew, in the same tensors: a captured step keeps writing to them."""
        for tensor in (self.sums, self.correct, self.samples, self.step):
            tensor.zero_()
        self.first_bad.fill_(NEVER)

    def compile(self) -> None:
        """Update through torch.compile from now on."""
        self.update = torch.compile(self.update)  # type: ignore[method-assign]

    @torch.no_grad()
    def update(self, losses: dict[str, Tensor], total: Tensor, logits: Tensor | None, labels: Tensor,
               samples: int | None = None) -> None:
        """Add a step's losses (scalars) and the correct of its logits (B, C), if there are any.

        samples: of the whole batch, if labels (B,) are one process's share of it
        """
        samples = samples or len(labels)
        values = torch.stack([*losses.values(), total])
        self.step += 1
        self.samples += samples
        self.sums += values.double() * samples
        bad_here = torch.where(values.isfinite(), NEVER, self.step)
        torch.minimum(self.first_bad, bad_here, out=self.first_bad)
        if logits is not None:
            self.correct += count_correct(logits, labels)

    def read(self) -> Averages:
        """The averages so far, over all processes, which must all ask; waits for the device.

        Raises RunError if a loss has not been finite, naming the first one and its step.
        """
        first, term = distributed.all_reduce_min(self.first_bad).min(0)
        if first.item() != NEVER:
            raise RunError(f"the loss '{self.names[int(term.item())]}' is not finite at step {first.item()} of the "
                           "epoch: lower the learning rate or its weight; the last good checkpoint is kept")
        samples = max(self.samples.item(), 1)
        *losses, total = (distributed.all_reduce_sum(self.sums) / (samples * distributed.world_size())).tolist()
        top1, top5 = (100 * count / samples for count in distributed.all_reduce_sum(self.correct).tolist())
        return Averages(total, dict(zip(self.names[:-1], losses, strict=True)), top1, top5)

    def loss(self) -> float:
        """The average total so far; waits for the device. Raises as `read` in a single process; of several each may ask
        by itself, and sees its own share."""
        if distributed.world_size() == 1:
            return self.read().loss
        return (self.sums[-1] / self.samples.clamp(min=1)).item()
