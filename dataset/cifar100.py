"""CIFAR-100: 100 classes of 500 training and 100 test images."""
from dataset import _cifar
from dataset._base import Data

# What the CRD benchmark and its descendants normalise by: these very digits, not the exact statistics.
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


def load(root: str) -> Data:
    """CIFAR-100 from `root`/cifar-100-python; see _cifar.load."""
    return _cifar.load(root, "cifar100", "CIFAR-100", MEAN, STD)
