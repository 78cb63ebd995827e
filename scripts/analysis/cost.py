"""What a network costs to run: parameters, arithmetic, time."""
import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement

SECONDS = 0.5


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@torch.no_grad()
def flops(network: nn.Module, image: Tensor) -> int:
    """Of a forward pass for image (1, 3, height, width): the multiplications and additions, each counted as one,
    of convolutions and matrix products, as PyTorch's counter finds them; twice what is often called MACs."""
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


@torch.inference_mode()
def latency(network: nn.Module, images: Tensor) -> "Measurement":
    """The time of a forward pass in evaluation mode for images (B, 3, height, width) on their device, in seconds.

    By PyTorch's Timer, for SECONDS or at least once, after a warm-up; with as many threads as PyTorch uses here.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it looks for a compiler, not needed here
    from torch.utils.benchmark import Timer

    timer = Timer("network(images)", globals={"network": network, "images": images},
                  num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=SECONDS)
