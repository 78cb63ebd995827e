"""ImageNet (Russakovsky et al. 2015), as torchvision lays it out: DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG."""
from dataset import folder
from dataset._base import Data

MEAN, STD, SETTINGS = folder.MEAN, folder.STD, folder.SETTINGS


def load(root: str, image_size: int | None = None, num_workers: int = 0, skip_unreadable: bool = False) -> Data:
    """ImageNet from `root`; see folder.load."""
    return folder.load(root, image_size, num_workers, skip_unreadable, name="imagenet", held_out=("val",))
