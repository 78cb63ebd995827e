"""What a method wants to know of how a teacher sees the classes: a matrix, computed once and kept."""
import os
from collections.abc import Callable

import torch
from torch import Tensor

from dataset import Data
from dataset.views import OFFSETS, PADDING
from distiller_zoo import MethodError
from helper.teacher.kept import kept
from helper.teacher.keys import arithmetic, fingerprint, key_of
from helper.util.files import open_regular, read_torch, write_torch
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

    def read(path):
        with open_regular(path) as file:
            found = read_torch(file)
        if not isinstance(found, Tensor) or found.shape != (len(data.classes),) * 2:
            raise ValueError("not a matrix of these classes")
        return found

    return kept(path, lambda: compute(_pooled(teacher, data, device), data.train.labels, len(data.classes)).cpu(), read,
                write_torch)


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
