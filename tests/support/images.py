"""Small data sets in image files, of noise, in the layouts that --dataset folder, imagenet and tinyimagenet read."""
import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def write(folder, number, seed=0, size=(40, 50), name="{}.jpg"):
    """`number` JPEG images of noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name.format(i), "JPEG")


def class_folders(root, train=6, test=4):
    """root/train/CLASS and root/val/CLASS of the three CLASSES; returns root."""
    for seed, name in enumerate(CLASSES):
        write(root / "train" / name, train, seed)
        write(root / "val" / name, test, 10 + seed)
    return root


def tiny_imagenet(root, train=6, test=4):
    """root/tiny-imagenet-200 of three classes, with its annotations; returns root."""
    top = root / "tiny-imagenet-200"
    for seed, name in enumerate(CLASSES):
        write(top / "train" / name / "images", train, seed, (64, 64), name + "_{}.JPEG")
    write(top / "val" / "images", 3 * test, 20, (64, 64), "val_{}.JPEG")
    lines = [f"val_{i}.JPEG\t{CLASSES[i % 3]}\t0\t0\t62\t62\n" for i in range(3 * test)]
    (top / "val" / "val_annotations.txt").write_text("".join(lines))
    (top / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    return root
