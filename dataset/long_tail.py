"""Training sets that are unequal or mislabelled on purpose; test sets stay as they are.

Long tail: class c of C keeps n_c = n_max · imbalance^(c/(C-1)) training images, rounded down; n_max is the largest
class's count (Cui et al., "Class-Balanced Loss", CVPR 2019; Cao et al., "Label-Distribution-Aware Margin Loss",
NeurIPS 2019: CIFAR-100-LT, whose imbalance ratio 100 is 0.01 here, has 10,847 images, 500 to 5 a class). A class
that has fewer keeps what it has, and each keeps one at least. Which images are kept is drawn class by class from
(data_seed, class): it does not depend on the imbalance, so a smaller one keeps a subset of a larger one's.

Label noise: of all n training images round(P · n) are given another class's label, each of the others with the same
probability (symmetric noise, as of Patrini et al., "Loss Correction", CVPR 2017, without the true class).

Neither depends on --seed and --trial: teachers and students, and all their trials, see one training set.
"""
from dataclasses import replace

import torch
from torch import Tensor

from dataset._base import Data
from helper.util.seeding import derive_seed


def profile(counts: Tensor, imbalance: float) -> Tensor:
    """How many images each class keeps, (C,) int64, C > 1; counts: (C,) how many it has, each 1 or more."""
    last = len(counts) - 1
    kept = [max(1, int(counts.max().item() * imbalance ** (c / last))) for c in range(last + 1)]
    return torch.minimum(torch.tensor(kept), counts)


def make_long_tailed(data: Data, imbalance: float, seed: int) -> Data:
    """The data with a long tail in its training set; `shots` are the images that are left of each class."""
    labels = data.train.labels
    counts = torch.bincount(labels, minlength=len(data.classes))
    kept = profile(counts, imbalance)
    index = []
    for c, n in enumerate(kept.tolist()):
        members = (labels == c).nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(derive_seed(seed, "", "imbalance", c))
        index.append(members[torch.randperm(len(members), generator=generator)[:n]])
    note = (f"; imbalance {imbalance:g}: {kept.sum():,} of the {len(labels):,} training images, {kept.max()} to "
            f"{kept.min()} a class")
    return replace(data, train=data.train.take(torch.cat(index).sort().values), shots=kept, note=data.note + note)


def add_label_noise(data: Data, noise: float, seed: int) -> Data:
    """The data with symmetric label noise in its training set; noise: the part of wrong labels, from 0 to below 1."""
    labels, classes = data.train.labels.clone(), len(data.classes)
    generator = torch.Generator().manual_seed(derive_seed(seed, "", "label_noise"))
    wrong = torch.randperm(len(labels), generator=generator)[: round(noise * len(labels))]
    labels[wrong] = (labels[wrong] + torch.randint(1, classes, (len(wrong),), generator=generator)) % classes
    note = f"; label noise {noise:g}: {len(wrong):,} training labels are wrong"
    return replace(data, train=data.train.relabelled(labels), note=data.note + note)
