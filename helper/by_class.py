"""Test accuracy class by class, and of many-, medium- and few-shot classes, for runs with a long tail."""
import torch
from torch import Tensor

from dataset import Data, EvalImages
from helper.loop import FLOAT32, LOGITS
from helper.util import distributed
from models import Classifier
from models.precision import Precision

# Many: more training images than MANY; few: fewer than FEW (Liu et al., "Large-Scale Long-Tailed Recognition in
# an Open World", CVPR 2019).
MANY, FEW = 100, 20


def by_class(network: Classifier, test: EvalImages, data: Data, precision: Precision) -> dict:
    """What result.json says of the classes where the training set has a long tail; empty where it has none.

    by_class: a list of {"class", "train_images", "top1"}, in the classes' order; shots: see `shots`.
    """
    if data.shots is None:
        return {}
    top1 = class_accuracies(network, test, len(data.classes), precision)
    rows = [{"class": name, "train_images": n, "top1": value}
            for name, n, value in zip(data.classes, data.shots.tolist(), top1.tolist(), strict=True)]
    return {"by_class": rows, "shots": shots(top1, data.shots)}


@torch.inference_mode()
def class_accuracies(network: Classifier, test: EvalImages, classes: int, precision: Precision = FLOAT32,
                     batch_size: int = 500) -> Tensor:
    """The part of each class's test images, in percent, that the network gives its label: (classes,) float64, CPU.

    The network is in evaluation mode meanwhile. Every class must have a test image.
    """
    training, right = network.training, torch.zeros(classes, dtype=torch.float64, device=test.labels.device)
    network.eval()
    for images, labels in test.batches(batch_size, distributed.own_slice(len(test))):
        hit = precision.outputs(network, images, LOGITS).logits.argmax(1) == labels
        right += torch.bincount(labels[hit], minlength=classes)
    network.train(training)
    return (100 * distributed.all_reduce_sum(right) / torch.bincount(test.labels, minlength=classes)).cpu()


def shots(top1: Tensor, train_images: Tensor) -> dict[str, dict]:
    """{"many", "medium", "few": {"classes": how many, "top1": mean of their accuracies}}, without empty groups.

    top1: (C,) accuracies in percent; train_images: (C,) training images of each class
    """
    groups = {"many": train_images > MANY, "few": train_images < FEW}
    groups["medium"] = ~(groups["many"] | groups["few"])
    return {name: {"classes": int(groups[name].sum()), "top1": top1[groups[name]].mean().item()}
            for name in ("many", "medium", "few") if groups[name].any()}
