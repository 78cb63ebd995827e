"""Methods by themselves: their flags, their inputs, and softmax and KD in NumPy's float64."""
import numpy as np
import torch

from distiller_zoo import METHODS, Setup
from helper import cli
from models import Outputs

CLASSES, BATCH = 7, 12


def logits(seed, rows=BATCH, columns=CLASSES):
    return 3 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def softened(z, T):
    e = np.exp(np.asarray(z.detach().double()) / T)
    return e / e.sum(1, keepdims=True)


def kd(p, q, T):
    return T**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()


def of_maps(heights, widths, pooled, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = [tuple(torch.randn(4, width, height, height, generator=generator)
                  for height, width in zip(heights, widths, strict=True)) for _ in range(2)]
    return Outputs(logits(seed, 4), torch.randn(4, pooled, generator=generator), maps[0], maps[1])


def method(name, *flags, student=None, teacher=None, samples=60, classes=CLASSES):
    options = cli.student_options(["--path_t", "t", "--distill", name, *map(str, flags)])
    student, teacher = (outputs or Outputs(logits(0)) for outputs in (student, teacher))
    return METHODS[name](Setup(student, teacher, "S", "T", torch.arange(samples) % classes, classes), options)


class Labels:
    labels = torch.arange(BATCH) % (CLASSES - 1)  # the last class is absent


# A student with other widths and heights than its teacher's.
REVIEWED = of_maps((16, 8, 4), (4, 8, 16), 16), of_maps((16, 16, 8), (6, 10, 20), 24, seed=1)
