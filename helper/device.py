"""The device that a run trains on."""
import os
import platform
from argparse import Namespace

import torch

from helper.util import distributed
from helper.util.errors import UsageError
from helper.util.gpu import runs_per_gpu


def open_device(options: Namespace) -> torch.device:
    """The device that `--device` asks for, set up as `--deterministic` and `--tf32` say. With torchrun each process of
    a machine gets a GPU of its own, and meets the others here.

    Raises UsageError where CUDA is asked for and there is none, or fewer GPUs than processes.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to repeat itself
        torch.use_deterministic_algorithms(True)
        # Filling new memory with NaN finds reads of what was never written, at a kernel for each tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = options.tf32 == "on"
    torch.backends.cudnn.benchmark = not options.deterministic
    device = torch.device("cuda" if cuda else "cpu")
    if distributed.launched_world_size() > 1:
        if cuda:
            if distributed.local_rank() >= torch.cuda.device_count():
                raise UsageError(f"this machine has {torch.cuda.device_count()} CUDA devices, one for each process: "
                                 "give torchrun as many by --nproc_per_node")
            device = torch.device("cuda", distributed.local_rank())
            torch.cuda.set_device(device)
        distributed.init(device)
    return device


def describe(device: torch.device) -> str:
    """'cuda, NVIDIA H100' or 'cpu, AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        runs = runs_per_gpu()
        return f"cuda, {torch.cuda.get_device_name(device)}" + (f", shared by {runs} runs" if runs > 1 else "")
    threads = torch.get_num_threads()
    return f"cpu, {_processor()}, {threads} thread{'s' * (threads > 1)}"


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
