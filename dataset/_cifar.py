"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), 50,000 + 10,000 images of 32x32 pixels, and STL-10, as torchvision reads
them."""
import contextlib
import io

import torch

from dataset._base import Data, DataError, Split
from dataset._download import fetch, held
from helper.util.errors import printable

# Bytes; the archives have 170 MB.
LIMIT = 250 * 10**6


def load(root: str, name: str, title: str, mean: tuple, std: tuple, limit: int = LIMIT,
         parts: tuple[dict, dict] = ({"train": True}, {"train": False})) -> Data:
    """The set that torchvision calls `title` without its hyphen, from the folder `root`, fetched if missing.

    limit: of the archive's bytes; parts: what names the training and the test images to torchvision
    torchvision checks the MD5 of each file. Raises DataError where the set cannot be fetched or read.
    """
    from torchvision import datasets  # imported late: it takes as long as PyTorch

    source = getattr(datasets, title.replace("-", ""))
    try:
        try:
            train, test = _read(source, root, parts, unpack=False)
        except RuntimeError:  # files are missing, or not what they should be
            with held(root, title):
                fetch(title, source.url, root, source.tgz_md5, limit, source.base_folder)
                train, test = _read(source, root, parts, unpack=True)
    except DataError:
        raise
    except Exception as error:  # torchvision, tarfile and pickle each raise their own kinds
        raise DataError(f"{title} in {root} cannot be read ({printable(error) or type(error).__name__}): move "
                        f"{source.base_folder} and {source.filename} away, and it is fetched again") from None
    return Data(name, tuple(train.classes), mean, std, True, _split(train), _split(test))


def _read(source, root, parts, unpack):
    # torchvision prints "Files already downloaded" at each call.
    with contextlib.redirect_stdout(io.StringIO()):
        return [source(root, **part, download=unpack) for part in parts]


def _split(dataset):
    images = torch.from_numpy(dataset.data)
    if images.shape[1] != 3:  # CIFAR's channels are last
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return Split(images, torch.as_tensor(labels, dtype=torch.int64))
