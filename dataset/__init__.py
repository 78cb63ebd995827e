"""Data sets by name, held in memory, and the views of them that training sees."""
from dataset import cifar100, digits
from dataset._base import Data, DataError, Split
from dataset.views import Batch, EvalImages, TrainViews, epoch_plan

LOADERS = {"cifar100": cifar100.load, "digits": digits.load}


def load(name: str, root: str) -> Data:
    """The data set `name`, one of LOADERS, kept in or fetched to the folder `root`."""
    return LOADERS[name](root)


__all__ = ["LOADERS", "Batch", "Data", "DataError", "EvalImages", "Split", "TrainViews", "epoch_plan", "load"]
