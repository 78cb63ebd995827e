"""CIFAR-10: 10 classes of 5,000 training and 1,000 test images."""
from dataset import _cifar
from dataset._base import Data

# Of the training images, over all pixels, to four digits.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def load(root: str) -> Data:
    """CIFAR-10 from `root`/cifar-10-batches-py; see _cifar.load."""
    return _cifar.load(root, "cifar10", "CIFAR-10", MEAN, STD)
