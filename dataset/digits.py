"""The handwritten digits that come with scikit-learn: real data that needs no download.

1,797 images of 8x8 pixels with 17 grey levels, 10 classes: the test half of UCI's Optical
Recognition of Handwritten Digits (Alpaydin and Kaynak 1998). Brought to 32x32 RGB by bilinear
interpolation. The split is fixed and stratified: of each class every fifth image, in the order
of the file, is a test image (1,442 for training, 355 for testing).
"""
import numpy as np
import torch
from PIL import Image

from dataset._base import Data, DataError, Split

# Of the training images, over all pixels, to four digits.
MEAN = (0.3054,) * 3
STD = (0.3237,) * 3


def load(root: str) -> Data:
    """The digits; `root` is not used, since scikit-learn ships them."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("--dataset digits needs scikit-learn: pip install -r requirements.txt") from None
    digits = load_digits()
    images = torch.stack([_rgb32(image) for image in digits.images])
    labels = torch.from_numpy(digits.target).long()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(10):
        held_out[(labels == c).nonzero().squeeze(1)[4::5]] = True
    names = tuple(str(c) for c in range(10))
    train, test = (Split(images[part], labels[part]) for part in (~held_out, held_out))
    return Data("digits", names, MEAN, STD, False, train, test)


def _rgb32(image):
    """(8, 8) in 0..16 -> (3, 32, 32) uint8."""
    grey = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
    big = torch.from_numpy(np.array(grey.resize((32, 32), Image.Resampling.BILINEAR)))
    return big.expand(3, 32, 32)
