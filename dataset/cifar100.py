"""CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 100 classes, through torchvision."""
import contextlib
import io
import os
import pickle

import torch

from dataset._base import Data, DataError, Split

# What the CRD benchmark and its descendants normalise by: these very digits, not the exact statistics.
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


def load(root: str) -> Data:
    """CIFAR-100 from `root`/cifar-100-python, downloaded and md5-checked by torchvision if missing.

    Raises DataError where it is missing and cannot be fetched.
    """
    train, test = _fetch(root)
    return Data("cifar100", tuple(train.classes), MEAN, STD, True, _split(train), _split(test), _superclasses(test))


def _fetch(root):
    from torchvision import datasets  # its import takes as long as PyTorch's: only who needs it waits

    archive = datasets.CIFAR100.filename
    put = f"put {archive} or the folder {datasets.CIFAR100.base_folder} into {root} (--data_dir)"
    try:
        os.makedirs(root, exist_ok=True)
    except OSError as error:
        raise DataError(f"the data folder {root} is not writable ({error.strerror}): give another --data_dir") from None
    try:
        present = os.path.isdir(os.path.join(root, datasets.CIFAR100.base_folder))
        if not present:
            print(f"CIFAR-100 is not in {root}: fetching {datasets.CIFAR100.url}", flush=True)
        # torchvision says "Files already downloaded" on standard output at each call.
        with contextlib.redirect_stdout(io.StringIO()):
            return (datasets.CIFAR100(root, train=True, download=True),
                    datasets.CIFAR100(root, train=False, download=True))
    except PermissionError as error:
        raise DataError(f"the data folder {root} is not writable ({error.strerror}): give another --data_dir") from None
    except Exception as error:  # torchvision, urllib and pickle each raise their own kinds
        raise DataError(f"CIFAR-100 is not in {root} and cannot be fetched ({_line(error)}): {put}") from None


def _superclasses(test):
    """Of each class the name of its superclass, read from the labels of the test images, which torchvision has
    md5-checked but of which it keeps the fine ones alone; empty where a file lacks them."""
    folder = os.path.join(test.root, test.base_folder)
    with open(os.path.join(folder, "meta"), "rb") as file:
        names = pickle.load(file, encoding="latin1").get("coarse_label_names")
    with open(os.path.join(folder, "test"), "rb") as file:
        coarse = pickle.load(file, encoding="latin1").get("coarse_labels")
    if not names or not coarse:
        return ()
    of = dict(zip(test.targets, coarse, strict=True))
    return tuple(names[of[c]] for c in range(len(test.classes)))


def _line(error):
    return " ".join(str(error).split()) or type(error).__name__


def _split(dataset):
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(dataset.targets))
