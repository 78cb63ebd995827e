"""Measure the memory and time of CRD's loss at its published setting, on the CPU.

python scripts/experiments/measure_crd.py

Each variant runs in a process of its own: 5 steps of loss and backward with 64 images, 16,384 negatives
each, 50,000 samples, embeddings of 128 from vectors of 256. Printed is the growth of the process's
peak memory over what it held before the first step (banks and inputs), and the seconds of a step.
"""
import resource
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import helper.util.start  # noqa: F401 (before PyTorch)

import torch

from distiller_zoo.crd import ContrastSampler, CRDLoss
from helper.cli import Parser
from helper.util import children
from helper.util.errors import RunError, guarded

VARIANTS = ("ours", "rows gathered")
BATCH, NEGATIVES, SAMPLES, WIDTH, STEPS = 64, 16384, 50000, 256, 5


def rows_gathered(loss, f_s, f_t, idx, contrast_idx):
    """The published way of scoring: the banks' rows, (B, 1 + m, width), and a batched product."""
    contrast, total = loss.contrast, 0
    v1, v2 = loss.embed_s(f_s), loss.embed_t(f_t)
    for v, bank in ((v1, contrast.memory_v2), (v2, contrast.memory_v1)):
        rows = bank[contrast_idx.flatten()].view(*contrast_idx.shape, -1)
        h = (rows @ v[:, :, None]).squeeze(2).div(contrast.temperature).exp()
        h = h / (h.mean().detach() * SAMPLES)
        noise = NEGATIVES / SAMPLES
        total = total - ((h[:, 0] / (h[:, 0] + noise)).log().sum() + (noise / (h[:, 1:] + noise)).log().sum()) / len(v)
    return total


def measure(variant):
    torch.manual_seed(0)
    labels = torch.arange(SAMPLES) % 100
    loss = CRDLoss(Namespace(s_dim=WIDTH, t_dim=WIDTH, feat_dim=128, n_data=SAMPLES, nce_t=0.07, nce_m=0.5))
    sampler, generator = ContrastSampler(labels, 100, NEGATIVES, relax=False), torch.Generator()
    f_s, f_t = torch.randn(BATCH, WIDTH, requires_grad=True), torch.randn(BATCH, WIDTH)
    score = loss if variant == "ours" else partial(rows_gathered, loss)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    for _ in range(STEPS):
        idx = torch.randperm(SAMPLES)[:BATCH]
        score(f_s, f_t, idx, sampler.draw(idx, generator)).backward()
    seconds = (time.perf_counter() - started) / STEPS
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{variant:<15}{growth:8.0f} MiB{seconds:8.3f} s a step, drawing included")


def main():
    parser = Parser(prog="measure_crd.py", description=__doc__.split("\n")[0])
    parser.add_argument("variant", nargs="?", choices=VARIANTS, help="measure this one alone, in this process")
    variant = parser.parse_args().variant
    if variant is not None:
        return measure(variant)
    for name in VARIANTS:
        if children.start([sys.executable, __file__, name]).wait():
            raise RunError(f"the measurement of {name!r} failed: see above")


if __name__ == "__main__":
    guarded(main)
