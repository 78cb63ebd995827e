"""What a network costs to run: parameters, arithmetic, time."""
import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

WARM_UP, MOST, LEAST, SECONDS = 2, 50, 5, 1.0


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@torch.no_grad()
def flops(network: nn.Module, image: Tensor) -> int:
    """Of a forward pass for image (1, 3, height, width): the multiplications and additions, each counted as one,
    of convolutions and matrix products, as PyTorch's counter finds them; twice what is often called MACs."""
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


class Latency(NamedTuple):
    """images: in a batch; median: seconds a forward pass; runs: how many were timed."""

    images: int
    median: float
    runs: int


@torch.inference_mode()
def latency(network: nn.Module, images: Tensor) -> Latency:
    """The time of a forward pass in evaluation mode for images (B, 3, height, width) on their device.

    After WARM_UP passes, as many are timed as fit into SECONDS, LEAST to MOST of them.
    """
    times = []
    while len(times) < WARM_UP + LEAST or (len(times) < WARM_UP + MOST and sum(times) < SECONDS):
        _synchronise(images.device)
        started = time.perf_counter()
        network(images)
        _synchronise(images.device)
        times.append(time.perf_counter() - started)
    return Latency(len(images), statistics.median(times[WARM_UP:]), len(times) - WARM_UP)


def _synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
