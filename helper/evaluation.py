"""One pass of a network over a test set: its accuracy, also by class, and the logits themselves."""
import sys
from collections.abc import Iterator
from typing import NamedTuple, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Data, EvalData
from helper.meters import count_correct
from helper.util import distributed
from helper.util.errors import RunError
from helper.util.progress import progress
from models import Classifier, Outputs
from models.precision import FLOAT32, LOGITS, Precision

# Many: more training images than MANY; few: fewer than FEW (Liu et al., "Large-Scale Long-Tailed Recognition in
# an Open World", CVPR 2019).
MANY, FEW = 100, 20


class Evaluation(NamedTuple):
    """loss: mean cross-entropy; top1, top5: accuracy in percent."""

    loss: float
    top1: float
    top5: float


class Predictions(NamedTuple):
    """On the CPU; logits: (N, C); labels: (N,) int64.

    pooled: (N, width), the vectors that the classifier reads; None for a network that has no such vector
    """

    logits: Tensor
    pooled: Tensor | None
    labels: Tensor


@torch.inference_mode()
def outputs(network: Classifier, test: EvalData, precision: Precision = FLOAT32, fields: frozenset[str] = LOGITS,
            batch_size: int | None = None, what: str = "", file: TextIO | None = None) \
        -> Iterator[tuple[Outputs, Tensor]]:
    """The network's outputs that `fields` names and the labels of all test images, batch by batch, on their device.

    The network is in evaluation mode meanwhile. Several processes share the images; each gets its own part.

    batch_size: by default what fills a GPU, and on the CPU what fits its caches
    what: title of a progress bar, which goes to `file` (by default standard output); none if it is empty
    """
    batch_size = min(batch_size or (2000 if test.labels.is_cuda else 500), len(test))
    own, training = distributed.own_slice(len(test)), network.training
    network.eval()
    try:
        with progress(what, own.stop - own.start, unit=" images", file=file) as bar:
            for images, labels in test.batches(batch_size, own):
                yield precision.outputs(network, images, fields), labels
                bar.update(len(labels))
    finally:
        network.train(training)


def evaluate(network: Classifier, test: EvalData, precision: Precision = FLOAT32, batch_size: int | None = None,
             what: str = "") -> Evaluation:
    """The network's loss and accuracy on all test images, the same in every process; batch_size, what: see `outputs`.

    Waits for the device once, at the end.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=test.labels.device)
    for out, labels in outputs(network, test, precision, batch_size=batch_size, what=what):
        loss = F.cross_entropy(out.logits, labels, reduction="sum").double()
        sums += torch.cat([loss[None], count_correct(out.logits, labels).double()])
    loss, top1, top5 = (distributed.all_reduce_sum(sums) / len(test)).tolist()
    return Evaluation(loss, 100 * top1, 100 * top5)


def predict(network: Classifier, test: EvalData, batch_size: int) -> Predictions:
    """The network's float32 logits and pooled vectors for all test images; progress goes to standard error.

    For a single process: of several, each would get its own part.

    Raises RunError if a logit is not finite.
    """
    logits, pooled, labels = [], [], []
    for out, own in outputs(network, test, fields=LOGITS | {"pooled"}, batch_size=batch_size, what=network.name,
                            file=sys.stderr):
        logits.append(out.logits.cpu())
        labels.append(own.cpu())
        if out.pooled is not None:
            pooled.append(out.pooled.cpu())
    found = Predictions(torch.cat(logits), torch.cat(pooled) if pooled else None, torch.cat(labels))
    if not found.logits.isfinite().all():
        raise RunError(f"{network.name} gives logits that are not finite, so its weights are damaged or its training "
                       "diverged: take another checkpoint")
    return found


def class_accuracies(network: Classifier, test: EvalData, classes: int, precision: Precision = FLOAT32,
                     batch_size: int | None = None) -> Tensor:
    """Of each class the percentage of its test images that get its label: (classes,) float64, CPU.

    Every class must have a test image.
    """
    correct = torch.zeros(classes, dtype=torch.float64, device=test.labels.device)
    for out, labels in outputs(network, test, precision, batch_size=batch_size):
        correct += torch.bincount(labels[out.logits.argmax(1) == labels], minlength=classes)
    return (100 * distributed.all_reduce_sum(correct) / torch.bincount(test.labels, minlength=classes)).cpu()


def by_class(network: Classifier, test: EvalData, data: Data, precision: Precision) -> dict:
    """What result.json says of the classes where the training set has a long tail; empty where it has none.

    by_class: a list of {"class", "train_images", "top1"}, in the classes' order; shots: see `shots`.
    """
    if data.shots is None:
        return {}
    top1 = class_accuracies(network, test, len(data.classes), precision)
    rows = [{"class": name, "train_images": n, "top1": value}
            for name, n, value in zip(data.classes, data.shots.tolist(), top1.tolist(), strict=True)]
    return {"by_class": rows, "shots": shots(top1, data.shots)}


def shot_groups(train_images: Tensor) -> dict[str, Tensor]:
    """{"many", "medium", "few": which classes, (C,) bool}; train_images: (C,) training images of each class."""
    many, few = train_images > MANY, train_images < FEW
    return {"many": many, "medium": ~(many | few), "few": few}


def shots(top1: Tensor, train_images: Tensor) -> dict[str, dict]:
    """{"many", "medium", "few": {"classes": how many, "top1": mean of their accuracies}}, without empty groups.

    top1: (C,) accuracies in percent; train_images: (C,) training images of each class
    """
    return {name: {"classes": int(group.sum()), "top1": top1[group].mean().item()}
            for name, group in shot_groups(train_images).items() if group.any()}
