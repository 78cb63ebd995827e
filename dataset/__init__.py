"""Data sets by name, each one file of this folder, found by itself; and the views of them that training sees."""
import importlib
import pkgutil
from argparse import Namespace
from collections.abc import Callable

from dataset import long_tail
from dataset._base import Data, DataError, EvalData, Samples, Split, TrainData
from dataset.views import Batch, TrainViews, epoch_plan

# The files of this folder that are no data sets, in addition to those that start with an underscore.
SERVICES = ("long_tail", "views")
# By name: load(root, **settings), and the settings that it takes, named as the flags that give them.
LOADERS: dict[str, Callable[..., Data]] = {}
SETTINGS: dict[str, tuple[str, ...]] = {}

for _name in sorted(found.name for found in pkgutil.iter_modules(__path__)):
    if not _name.startswith("_") and _name not in SERVICES:
        _module = importlib.import_module(f"{__name__}.{_name}")
        LOADERS[_name], SETTINGS[_name] = _module.load, getattr(_module, "SETTINGS", ())


def load(name: str, root: str, **settings) -> Data:
    """The data set `name`, one of LOADERS, kept in or fetched to the folder `root`; settings: see SETTINGS.

    Raises DataError where it is missing, cannot be fetched or is not what it should be.
    """
    return LOADERS[name](root, **settings)


def from_options(o: Namespace) -> Data:
    """The data set of a run: `--dataset` from `--data_dir`, with the long tail and the label noise asked for.

    Raises DataError as `load`, and for a flag that the data set has no use for.
    """
    taken = SETTINGS[o.dataset]
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


__all__ = ["LOADERS", "Batch", "Data", "DataError", "EvalData", "Samples", "Split", "TrainData", "TrainViews",
           "epoch_plan", "from_options", "load", "title"]
