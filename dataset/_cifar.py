"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32x32 pixels, through torchvision."""
import contextlib
import io
import os

import torch

from dataset._base import Data, DataError, Split


def load(root: str, name: str, title: str, mean: tuple, std: tuple) -> Data:
    """The set that torchvision calls `title` without its hyphen, from the folder `root`.

    It is downloaded and md5-checked by torchvision if missing. Raises DataError where that cannot be done.
    """
    train, test = _fetch(root, title)
    return Data(name, tuple(train.classes), mean, std, True, _split(train), _split(test))


def _fetch(root, title):
    from torchvision import datasets  # its import takes as long as PyTorch's: only who needs it waits

    source = getattr(datasets, title.replace("-", ""))
    put = f"put {source.filename} or the folder {source.base_folder} into {root} (--data_dir)"
    try:
        os.makedirs(root, exist_ok=True)
    except OSError as error:
        raise DataError(f"the data folder {root} is not writable ({error.strerror}): give another --data_dir") from None
    try:
        present = os.path.isdir(os.path.join(root, source.base_folder))
        if not present:
            print(f"{title} is not in {root}: fetching {source.url}", flush=True)
        # torchvision says "Files already downloaded" on standard output at each call.
        with contextlib.redirect_stdout(io.StringIO()):
            return source(root, train=True, download=True), source(root, train=False, download=True)
    except PermissionError as error:
        raise DataError(f"the data folder {root} is not writable ({error.strerror}): give another --data_dir") from None
    except Exception as error:  # torchvision, urllib and pickle each raise their own kinds
        raise DataError(f"{title} is not in {root} and cannot be fetched ({_line(error)}): {put}") from None


def _line(error):
    return " ".join(str(error).split()) or type(error).__name__


def _split(dataset):
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(dataset.targets))
