"""STL-10 (Coates, Ng and Lee 2011): 10 classes of 500 training and 800 test images of 96x96 pixels.

The archive of 2.6 GB also holds 100,000 images without labels, which nothing here reads.
"""
from dataset import _cifar
from dataset._base import Data

# The usual figures for the training images; not computed anew here.
MEAN = (0.4467, 0.4398, 0.4066)
STD = (0.2603, 0.2566, 0.2713)
LIMIT = 3 * 10**9


def load(root: str) -> Data:
    """STL-10 from `root`/stl10_binary; see _cifar.load."""
    return _cifar.load(root, "stl10", "STL-10", MEAN, STD, LIMIT, ({"split": "train"}, {"split": "test"}))
