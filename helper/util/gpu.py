"""A GPU's memory, and the runs that share it."""
import os

import torch

# Set by scripts/reproduce.py --jobs: how many runs train on a GPU at a time.
RUNS_PER_GPU = "RUNS_PER_GPU"


def runs_per_gpu() -> int:
    """How many runs share this one's GPU, itself counted in."""
    text = os.environ.get(RUNS_PER_GPU, "")
    return max(1, int(text)) if text.isdecimal() else 1


def free_memory(device: torch.device) -> int | None:
    """The bytes that this run may still take of its GPU: of those that are free, and of its share where several runs
    have one GPU; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()  # what PyTorch holds back is free
    free, total = torch.cuda.mem_get_info(device)
    return max(0, min(free, total // runs_per_gpu() - torch.cuda.memory_reserved(device)))
