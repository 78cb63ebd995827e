"""A training step as one CUDA graph: its hundreds of kernels are launched by one call.

The step is the plain one (step.train_step): forward passes, losses, backward, optimiser and meters. What a step
reads and writes has fixed places: its batch and the teacher's outputs are copied to where the graph reads them, the
learning rate and the meters are tensors. A Python value is frozen by the capture, so there is a graph for each
size of batch (the last one is smaller) and each mode of the terms (IKD collects in the first epoch, Term.mode).

The first steps of each kind run eagerly, as CUDA wants it for what is initialised on first use; they are training
steps like any other, so that nothing has to be undone.
"""
import contextlib
import math
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from dataset import Batch
from helper.util import distributed
from helper.util.errors import UsageError
from helper.util.nested import each, tensors
from models import Outputs

EAGER_STEPS = 3


def cuda_capture(step: Callable[[], None]) -> Callable[[], None]:
    """Capture what `step` launches, without running it; returns what runs it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_stream(), capture_error_mode="thread_local"):
        step()
    return graph.replay


def is_captured(asked: str, objective, device: torch.device) -> tuple[bool, dict[str, str]]:
    """Whether a step runs as a CUDA graph, by `--cuda_graph`, and what to say of it at the start.

    Raises UsageError where "on" is asked for and it cannot.
    """
    if device.type != "cuda":
        if asked == "on":
            raise UsageError("--cuda_graph on: there are CUDA graphs on CUDA devices alone; leave it out")
        return False, {}
    why_not = "several processes" if distributed.world_size() > 1 else objective.uncapturable()
    if asked == "on" and why_not:
        raise UsageError(f"--cuda_graph on: {why_not}; leave it out")
    if asked == "off" or why_not:
        return False, {"step": f"eager: {why_not}" if why_not else "eager"}
    return True, {"step": "one CUDA graph"}


class CapturedStep:
    """In the place of `train_step`, with its arguments. Where a capture fails, it says so and continues eagerly.

    optimizer: whose learning rate becomes a tensor, which a graph reads
    capture: a step that takes nothing -> what repeats it on the same tensors; `cuda_capture`, or in tests its
        equal on the CPU
    """

    def __init__(self, train_step, optimizer: torch.optim.Optimizer, capture=cuda_capture):
        self.train_step, self.capture = train_step, capture
        self.seen: dict[tuple, float] = defaultdict(float)
        self.graphs: dict = {}
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)

    def __call__(self, phase, batch: Batch, teacher: Outputs, meters) -> None:
        kind = len(batch.labels), phase.objective.mode()
        if kind not in self.graphs:
            if self.seen[kind] < EAGER_STEPS:
                self.seen[kind] += 1
                with side_stream(batch.labels.device):
                    return self.train_step(phase, batch, teacher, meters)
            places = Batch(*each(Tensor.clone, batch)), Outputs(*each(Tensor.clone, teacher))
            try:
                self.graphs[kind] = places, self.capture(lambda: self.train_step(phase, *places, meters))
            except RuntimeError as error:  # nothing has run, so nothing is lost
                print(f"note      the step cannot be captured ({str(error).splitlines()[0]}): continuing eagerly",
                      flush=True)
                self.seen[kind] = -math.inf
                return self.train_step(phase, batch, teacher, meters)
        places, replay = self.graphs[kind]
        for place, value in zip(tensors(places), tensors((batch, teacher)), strict=True):
            place.copy_(value)
        replay()


@contextlib.contextmanager
def side_stream(device: torch.device):
    """Work inside is launched to a stream of its own, as steps before a capture need, in order with what comes before
    and after; on the CPU there are no streams."""
    if device.type != "cuda":
        yield
        return
    stream = _stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@lru_cache
def _stream():
    return torch.cuda.Stream()
