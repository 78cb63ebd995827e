"""What a run may take of a GPU's memory: from what CUDA says, which these tests say in its place."""
import torch

from helper.util import gpu

CUDA = torch.device("cuda")


def test_runs_share_a_gpus_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5)
    monkeypatch.delenv(gpu.RUNS_PER_GPU, raising=False)
    assert gpu.free_memory(torch.device("cpu")) is None
    assert (gpu.runs_per_gpu(), gpu.free_memory(CUDA)) == (1, 70)
    monkeypatch.setenv(gpu.RUNS_PER_GPU, "4")
    assert (gpu.runs_per_gpu(), gpu.free_memory(CUDA)) == (4, 15)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3, 80))  # the others have taken more than theirs
    assert gpu.free_memory(CUDA) == 3
