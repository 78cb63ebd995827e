"""What a method wants to know of how a teacher sees the classes: a matrix, computed once and kept."""
import contextlib
import os
from collections.abc import Callable

import torch
from torch import Tensor

from dataset import Data
from dataset.views import OFFSETS, PADDING
from distiller_zoo import MethodError
from helper.teacher.keys import arithmetic, fingerprint, key_of
from helper.util import distributed
from helper.util.files import Damaged, open_regular, read_torch, write_torch
from helper.util.progress import progress
from models import Classifier

# The view that cuts nothing off and is not mirrored.
PLAIN = (PADDING * OFFSETS + PADDING) * 2
BATCH = 500


def class_matrix(name: str, compute: Callable[[Tensor, Tensor, int], Tensor], teacher: Classifier, data: Data,
                 folder: str, device: torch.device) -> Tensor:
    """compute(pooled vectors of the training images as they are, (n, width) on the CPU, their labels, classes), a
    matrix of classes by classes.

    It is kept in `folder`/classes under all that it depends on, and under `name`, which stands for `compute`.
    Raises MethodError for data that is read from its files as needed, or a teacher without a pooled vector.
    """
    if not data.countable:
        raise MethodError(f"{data.name} is read from its files as needed: the teacher's features of all its training "
                          "images are taken from data sets in memory alone: take another method, or wkd with "
                          "--wkd_cost fc")
    key = fingerprint(key_of(teacher, data, "float32", f"{arithmetic(device)} on {device.type}"), data.train.labels)
    path = os.path.join(folder, "classes", f"{teacher.name}_{data.name}_{key[:16]}_{name}.pth")

    def held():
        # Not there yet, or damaged.
        with contextlib.suppress(OSError, Damaged), open_regular(path) as file:
            found = read_torch(file)
            return found if isinstance(found, Tensor) and found.shape == (len(data.classes),) * 2 else None

    matrix = distributed.broadcast_from_rank0(held)
    if matrix is None:
        matrix = compute(_pooled(teacher, data, device), data.train.labels, len(data.classes)).cpu()
        # Kept to save time: where it cannot be, the next run computes it again.
        with contextlib.suppress(OSError):
            if distributed.rank() == 0:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                write_torch(path, matrix)
    return matrix


@torch.inference_mode()
def _pooled(teacher, data, device):
    views, rows = data.train_views(device), []
    teacher.to(device).eval()
    with progress("teacher's features of the training images", len(views), unit=" images") as bar:
        for index in torch.arange(len(views), device=device).split(BATCH):
            pooled = teacher(views.gather(index, torch.full_like(index, PLAIN)), named=True).pooled
            if pooled is None:
                raise MethodError(f"{teacher.name} offers no pooled vector: take another teacher")
            rows.append(pooled.float().cpu())
            bar.update(len(index))
    return torch.cat(rows)
