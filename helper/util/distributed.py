"""The processes that torchrun has started for one run: their ranks, and the collectives that the run needs.

A batch is shared: each process takes its rows of it, and DistributedDataParallel averages their gradients, so that a
step equals that of a single process with the whole batch. Without torchrun there is rank 0 of 1, and every function
here returns at once.
"""
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helper.util import children

# Steps from one question of all to all, whether one was asked to stop, to the next.
ASK_EVERY = 10


def launched_world_size() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    set_by_torchrun = {"WORLD_SIZE", "RANK", "LOCAL_RANK"} <= set(os.environ)
    return int(os.environ["WORLD_SIZE"]) if set_by_torchrun else 1


def rank() -> int:
    """This process's number, 0 for the first."""
    return int(os.environ["RANK"]) if launched_world_size() > 1 else 0


def local_rank() -> int:
    """This process's number among those of its machine."""
    return int(os.environ["LOCAL_RANK"]) if launched_world_size() > 1 else 0


def world_size() -> int:
    """How many processes work together; 1 before `init`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def init(device: torch.device) -> None:
    """Create the process group. From here on only rank 0 prints."""
    if launched_world_size() == 1 or dist.is_initialized():
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a killed torchrun would leave its processes training
        children.end_with(os.getppid())
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def destroy() -> None:
    """Leave the process group at the end, once all processes are there and nothing uses the connections any more."""
    if dist.is_initialized():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Run the block on local rank 0 of each machine, then on its other processes, so that what is missing is fetched
    once. If it fails on local rank 0, the others exit silently."""
    waits = world_size() > 1 and local_rank() > 0
    leads = world_size() > 1 and not waits
    if waits:
        _all_well(True)
    try:
        yield
    except BaseException:
        if leads:
            _all_well(False)
        raise
    if leads:
        _all_well(True)


def _all_well(well):
    flag = torch.tensor(int(well))
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    if well and flag.item() == 0:
        raise SystemExit(2)


def broadcast_from_rank0(make: Callable[[], Any]) -> Any:
    """The result of `make` on rank 0, on all ranks; what it raises there is raised on all."""
    if world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def all_reduce_max(number: int) -> int:
    """The largest of all processes' numbers."""
    if world_size() == 1:  # asked in every step
        return number
    return int(_reduced(torch.tensor(number), dist.ReduceOp.MAX))


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of all processes' tensors, without a gradient."""
    return _reduced(values, dist.ReduceOp.SUM)


def all_reduce_min(values: Tensor) -> Tensor:
    """Element by element, the smallest of all processes' tensors."""
    return _reduced(values, dist.ReduceOp.MIN)


def _reduced(values, operation):
    if world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values, operation)
    return values


def share_sizes(whole: int) -> list[int]:
    """How many of `whole` samples each process takes: as equal as can be, the first ones one more."""
    return [whole // world_size() + (i < whole % world_size()) for i in range(world_size())]


def own_slice(whole: int) -> slice:
    """This process's part of `whole` samples, each of which is exactly one process's."""
    before = sum(share_sizes(whole)[: rank()])
    return slice(before, before + share_sizes(whole)[rank()])


def own_share(plan: tuple[Tensor, ...], batch_size: int) -> tuple[Tensor, ...]:
    """This process's part of an epoch's plan: its own rows of each batch of `batch_size`, in order."""
    if world_size() == 1:
        return plan
    return tuple(torch.cat([part[own_slice(len(part))] for part in x.split(batch_size)]) for x in plan)


def all_gather_rows(rows: Tensor, whole: int) -> Tensor:
    """The rows of all processes, (whole, ...), in the order of the batch; rows: this process's own.

    The gradient is that of a loss which every process computes alike of the whole, and of which
    DistributedDataParallel takes the mean.
    """
    return rows if world_size() == 1 else _Gathered.apply(rows, whole)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, whole):
        ctx.sizes = share_sizes(whole)
        padded = rows.new_zeros(max(ctx.sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in ctx.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad):
        # The mean divides by the number of processes, and only this one has the gradient of its rows.
        return grad.split(ctx.sizes)[rank()] * world_size(), None


def wrap_ddp(module: nn.Module) -> nn.Module:
    """The module, whose backward pass leaves the mean of all processes' gradients; itself in a single process. A
    parameter has a gradient in each of its steps or in none."""
    if world_size() == 1:
        return module
    # Static: a parameter that the loss does not reach is noticed, and keeps no gradient, since weight decay would move
    # one of 0. How buffers come together, the class means or batch norm's statistics, is their owners' business.
    return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, static_graph=True,
                                               gradient_as_bucket_view=True)


@torch.no_grad()
def average_batch_norm_statistics(module: nn.Module) -> None:
    """Bring batch norms' running statistics, which follow each process's own images, to their mean."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    if world_size() == 1 or not statistics:
        return
    mean = all_reduce_sum(torch.cat(statistics)) / world_size()
    for held, value in zip(statistics, mean.split([len(s) for s in statistics]), strict=True):
        held.copy_(value)
