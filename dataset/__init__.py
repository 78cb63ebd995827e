"""Data sets by name, and the views of them that training sees."""
from argparse import Namespace

from dataset import cifar10, cifar100, digits, folder, long_tail, tinyimagenet
from dataset._base import Data, DataError, Split
from dataset.views import Batch, EvalImages, TrainViews, epoch_plan

LOADERS = {"cifar100": cifar100.load, "cifar10": cifar10.load, "tinyimagenet": tinyimagenet.load,
           "imagenet": folder.load("imagenet"), "folder": folder.load("folder"), "digits": digits.load}
# The settings that a loader takes beside the folder; those of image files alone.
SETTINGS = {"tinyimagenet": tinyimagenet.SETTINGS, "imagenet": folder.SETTINGS, "folder": folder.SETTINGS}


def load(name: str, root: str, **settings) -> Data:
    """The data set `name`, one of LOADERS, kept in or fetched to the folder `root`; settings: see SETTINGS.

    Raises DataError where it is missing, cannot be fetched or is not what it should be.
    """
    return LOADERS[name](root, **settings)


def from_options(o: Namespace) -> Data:
    """The data set of a run: `--dataset` from `--data_dir`, with the long tail and the label noise asked for.

    Raises DataError as `load`, and for a flag that the data set has no use for.
    """
    taken = SETTINGS.get(o.dataset, ())
    for flag in ("image_size", "skip_unreadable"):
        if getattr(o, flag) and flag not in taken:
            takers = ", ".join(name for name, settings in SETTINGS.items() if flag in settings)
            raise DataError(f"--{flag} is a flag of {takers}: {o.dataset} has no use for it")
    data = load(o.dataset, o.data_dir, **{name: getattr(o, name) for name in taken})
    if o.imbalance != 1:
        data = long_tail.make_long_tailed(data, o.imbalance, o.data_seed)
    if o.label_noise != 0:
        data = long_tail.add_label_noise(data, o.label_noise, o.data_seed)
    return data


def title(o: Namespace) -> str:
    """The data set in the name of a run's folder: `--dataset`, and what else decides on the images, if it is given."""
    given = [("imb", o.imbalance, 1), ("noise", o.label_noise, 0), ("dseed", o.data_seed, 0)]
    return "-".join([o.dataset, *(f"{word}{value:g}" for word, value, off in given if value != off)])


__all__ = ["LOADERS", "Batch", "Data", "DataError", "EvalImages", "Split", "TrainViews", "epoch_plan", "from_options",
           "load", "title"]
