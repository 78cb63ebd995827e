"""A training step as one CUDA graph: its hundreds of kernels are launched by one call.

The step is the plain one (step.train_step): forward passes, losses, backward, optimiser and meters; where the images
and the teacher's outputs are gathered on the device (DistillLoader.deferred), that too. What a step reads and writes
has fixed places: its batch is copied to where the graph reads it, the learning rate and the meters are tensors. A
Python value is frozen by the capture, so there is a graph for each size of batch (the last one is smaller) and each
mode of the terms (IKD collects in the first epoch, Term.mode).

The first steps of each kind run eagerly, as CUDA wants it for what is initialised on first use; they are training
steps like any other, so that nothing has to be undone.
"""
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dataset import Batch
from helper.util import distributed
from helper.util.errors import UsageError
from helper.util.nested import each, tensors
from models import Outputs

EAGER_STEPS = 3


class CudaGraphs:
    """Captures steps, whose graphs share one pool of memory: one runs at a time, and none leaves a result to another
    in it."""

    def __init__(self):
        self.pool: Any = None
        self.graphs: list[torch.cuda.CUDAGraph] = []

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Capture what `step` launches, without running it; returns what runs it.

        Raises RuntimeError where that fails, its cause among its contexts; nothing has run then, PyTorch's generators
        and allocator are as before, and the tensors that `step` has left behind must not be read.
        """
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what eager steps have left, which a graph cannot use
        with torch.cuda.stream(_stream()):
            # Another thread may allocate meanwhile: the one that pins the memory of images that are read from files.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                self._end(graph)
        self.graphs.append(graph)
        return graph.replay

    def release(self) -> None:
        """Give the memory of all graphs back; they must not run any more."""
        for graph in self.graphs:
            graph.reset()
        self.pool, self.graphs = None, []
        torch.cuda.empty_cache()

    def _end(self, graph):
        """End a capture. Where CUDA refuses, the allocator would still serve the stream from the pool and hold back
        what is freed, and the generators would count as captured, so that dropout raises."""
        try:
            graph.capture_end()
        except RuntimeError:
            device, place = torch.cuda.current_device(), torch.zeros((), device="cuda")
            torch._C._cuda_endAllocateToPool(device, self.pool)
            torch._C._cuda_releasePool(device, self.pool)
            trivial = torch.cuda.CUDAGraph()
            trivial.capture_begin(capture_error_mode="thread_local")
            place.zero_()
            trivial.capture_end()
            raise


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


class BatchCounts:
    """How many batches the batch norms of a network have seen: a captured step leaves these counters out, since each
    would be a kernel of its own, and they follow when the network's state is asked for."""

    def __init__(self, network: nn.Module):
        # Without a momentum the statistics depend on the counter, which then has to be part of the step.
        self.norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
                      and module.momentum is not None and module.num_batches_tracked is not None]
        self.repeated: Counter = Counter()  # steps, by what they add to the counters
        for norm in self.norms:
            norm.register_state_dict_pre_hook(lambda *_: self.flush())

    def read(self) -> Tensor:
        """(norms,) int64, as they are."""
        held = [norm.num_batches_tracked for norm in self.norms if norm.num_batches_tracked is not None]
        return torch.stack(held) if held else torch.zeros(0)

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Batch norm does not count inside."""
        held = [norm.num_batches_tracked for norm in self.norms]
        for norm in self.norms:
            norm.num_batches_tracked = None
        try:
            yield
        finally:
            for norm, counter in zip(self.norms, held, strict=True):
                norm.num_batches_tracked = counter

    def repeats(self, replay: Callable[[], None], counted: tuple[int, ...]) -> Callable[[], None]:
        """`replay`, each call of which counts as one step that adds `counted` to the counters."""
        def run():
            replay()
            self.repeated[counted] += 1

        return run

    def flush(self) -> None:
        """Bring the counters up to date."""
        for counted, times in self.repeated.items():
            for norm, added in zip(self.norms, counted, strict=True):
                norm.num_batches_tracked += times * added
        self.repeated.clear()


class CapturedStep:
    """In the place of `train_step`, with its arguments. Where a capture fails, it says so and continues eagerly.

    phase: whose steps these will be; its optimiser's learning rate becomes a tensor, which a graph reads
    graphs: captures a step that takes nothing, as what repeats it on the same tensors, and releases them
    """

    def __init__(self, train_step, phase, graphs=None):
        self.train_step, self.graphs = train_step, graphs or CudaGraphs()
        self.seen: Counter = Counter()
        self.captured: dict[tuple, tuple] = {}
        self.counted: dict[tuple, Tensor] = {}
        self.mode, self.eager = None, False
        # A compiled network would be compiled anew without its counters.
        self.counts = BatchCounts(nn.Sequential() if phase.precision.compiled else phase.forward)
        for group in phase.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)

    def __call__(self, phase, batch: Batch, teacher: Outputs, meters) -> None:
        if self.eager:
            return self._run(phase, batch, teacher, meters)
        kind = len(batch.index), phase.objective.mode()
        if kind[1] != self.mode:  # the graphs of a past mode would hold the memory that this one needs
            self._release(phase)
            self.mode = kind[1]
        if kind not in self.captured:
            if self.seen[kind] < EAGER_STEPS:
                self.seen[kind] += 1
                return self._warm_up(kind, phase, batch, teacher, meters)
            places = Batch(*each(Tensor.clone, batch)), Outputs(*each(Tensor.clone, teacher))
            try:
                self._capture(kind, phase, places, meters)
            except RuntimeError as error:
                return self._continue_eagerly(error, phase, batch, teacher, meters)
        places, replay = self.captured[kind]
        for place, value in zip(tensors(places), tensors((batch, teacher)), strict=True):
            place.copy_(value)
        replay()

    def _run(self, phase, batch, teacher, meters):
        self.train_step(phase, *phase.loader.complete(batch, teacher), meters)

    def _warm_up(self, kind, phase, batch, teacher, meters):
        """A step that runs eagerly, before one of its kind is captured."""
        # A step that runs out of memory beside the graphs is repeated without them, as if it had not begun.
        state = [(buffer, buffer.clone()) for buffer in phase.forward.buffers()] if self.captured else []
        before = self.counts.read()
        try:
            with side_stream(batch.index.device):
                return self._run(phase, batch, teacher, meters)
        except torch.OutOfMemoryError as error:
            if not self.captured:
                raise
            failed = error
        finally:
            self.counted[kind] = self.counts.read() - before
        for buffer, value in state:
            buffer.copy_(value)
        self._continue_eagerly(failed, phase, batch, teacher, meters)

    def _capture(self, kind, phase, places, meters):
        counted = tuple(self.counted[kind].tolist())
        batch, teacher = places
        with self.counts.left_out():
            replay = self.graphs.capture(lambda: self._run(phase, batch, teacher, meters))
        self.captured[kind] = places, self.counts.repeats(replay, counted)

    def _continue_eagerly(self, error, phase, batch, teacher, meters):
        cause = error
        while cause.__context__ is not None:  # the end of a capture raises too, and says less
            cause = cause.__context__
        print(f"note      the step cannot be captured ({str(cause).splitlines()[0]}): continuing eagerly", flush=True)
        # Tracebacks hold the tensors of the step that failed.
        error.__traceback__ = error.__context__ = cause.__traceback__ = None
        self.eager = True
        self._release(phase)
        self._run(phase, batch, teacher, meters)

    def _release(self, phase):
        """Give back the memory of the graphs, in which the last gradients are too."""
        if self.captured or self.eager:
            self.captured.clear()
            phase.optimizer.zero_grad(set_to_none=True)
            self.graphs.release()


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
