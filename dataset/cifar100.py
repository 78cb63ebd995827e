"""CIFAR-100: 100 classes of 500 training and 100 test images."""
import dataclasses
import os
import pickle

from dataset import _cifar
from dataset._base import Data

# What the CRD benchmark and its descendants normalise by: these very digits, not the exact statistics.
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
FOLDER = "cifar-100-python"


def load(root: str) -> Data:
    """CIFAR-100 from `root`/cifar-100-python; see _cifar.load."""
    data = _cifar.load(root, "cifar100", "CIFAR-100", MEAN, STD)
    return dataclasses.replace(data, superclasses=_superclasses(root, data.test.labels, len(data.classes)))


def _superclasses(root, labels, classes):
    """Of each class the name of its superclass, read from the labels of the test images, which torchvision has
    md5-checked but of which it keeps the fine ones alone; empty where a file lacks them."""
    meta, test = (_unpickled(os.path.join(root, FOLDER, name)) for name in ("meta", "test"))
    names, coarse = meta.get("coarse_label_names"), test.get("coarse_labels")
    if not names or not coarse:
        return ()
    of = dict(zip(labels.tolist(), coarse, strict=True))
    return tuple(names[of[c]] for c in range(classes))


def _unpickled(path):
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")
