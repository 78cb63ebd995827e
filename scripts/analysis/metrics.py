"""What a network's predictions on a test set say: accuracy by class, calibration, consistency within a class.

Pure functions of tensors. N images of C classes; p_i = softmax(z_i), the prediction for image i with
logits z_i; y_i its label; of class c there are n_c images. Sums are in float64. A class without images is
NaN in every per-class result, and left out where `mean` averages over classes.

Consistency asks how alike the predictions for images of one class are, right or wrong. A network that is
sure of one answer for all of a class scores 0, so these figures are read beside the accuracy.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distiller_zoo._logits import kl, log_softmax
from helper.meters import count_correct

BINS = 15


def class_counts(labels: Tensor, classes: int) -> Tensor:
    """(C,) float64: n_c."""
    return torch.bincount(labels, minlength=classes).double()


def class_means(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(C, ...) float64: of each class the mean of its images' values (N, ...); NaN for a class without images."""
    flat = values.double().flatten(1) if values.ndim > 1 else values.double()[:, None]
    sums = F.one_hot(labels, classes).double().T @ flat
    return (sums / class_counts(labels, classes)[:, None]).view(classes, *values.shape[1:])


def mean(per_class: Tensor) -> float:
    """The mean over the classes that have images."""
    return per_class.nanmean().item()


def class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """(C,): the part of each class's images whose largest logit is the label's, in percent."""
    return 100 * class_means(logits.argmax(1) == labels, labels, logits.shape[1])


def numbered(superclasses: tuple[str, ...]) -> tuple[list[str], Tensor]:
    """The names of the superclasses, sorted, and of each class the number (C,) int64 of its own among them."""
    names = sorted(set(superclasses))
    return names, torch.tensor([names.index(name) for name in superclasses])


def superclass_accuracy(logits: Tensor, labels: Tensor, superclass: Tensor) -> tuple[Tensor, Tensor]:
    """(exact, within), in percent over the images of each superclass, (S,) float64: the predicted class is the label;
    it is any class of the label's superclass. superclass (C,) int64: of each class the number of its own, in [0, S)."""
    predicted, number = logits.argmax(1), int(superclass.max()) + 1
    of_image = superclass[labels]
    return (100 * class_means(predicted == labels, of_image, number),
            100 * class_means(superclass[predicted] == of_image, of_image, number))


def nll(logits: Tensor, labels: Tensor) -> float:
    """The mean negative log-likelihood of the labels, −(1/N) Σ_i log p_i(y_i), in nats."""
    return F.cross_entropy(logits.double(), labels).item()


class Reliability(NamedTuple):
    """Of each bin of confidence, all (bins,) float64; NaN where it is empty.

    images: how many it holds; confidence: their mean max_k p_i(k); accuracy: the part that is right, in [0, 1]
    """

    images: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """The images by confidence: bin b of B holds those with max_k p_i(k) in (b/B, (b+1)/B], b from 0."""
    confidence, predicted = logits.double().softmax(1).max(1)
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return Reliability(class_counts(which, bins), class_means(confidence, which, bins),
                       class_means(predicted == labels, which, bins))


def ece(r: Reliability) -> float:
    """Expected calibration error, Σ_b (n_b/N) |accuracy_b − confidence_b|, in [0, 1].

    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    return (r.images / r.images.sum() * (r.accuracy - r.confidence).abs()).nansum().item()


def within_class_spread(logits: Tensor, labels: Tensor) -> Tensor:
    """(C,): S_c = (1/n_c) Σ_{i: y_i=c} ‖p_i − p̄_c‖², p̄_c = (1/n_c) Σ_{i: y_i=c} p_i.

    The variance of the predictions around their class mean, summed over the C entries; in [0, 1).
    """
    p, classes = logits.double().softmax(1), logits.shape[1]
    centre = class_means(p, labels, classes)
    return class_means((p - centre[labels]).square().sum(1), labels, classes)


def within_class_kl(logits: Tensor, labels: Tensor) -> Tensor:
    """(C,): D_c = (1/n_c) Σ_{i: y_i=c} KL(p_i ‖ p̄_c), in nats, with the class's mean prediction p̄_c.

    The Jensen-Shannon divergence of the class's predictions: what is left to know about a prediction
    once the class is known. At most log n_c.
    """
    p, classes = logits.double().softmax(1), logits.shape[1]
    log_centre = class_means(p, labels, classes).log()
    # p (log p − log p̄) is 0 where p is; p̄ is 0 only where every p of the class is.
    divergence = (torch.special.xlogy(p, p) - torch.where(p > 0, p * log_centre[labels], 0.0)).sum(1)
    return class_means(divergence, labels, classes)


def ikd_distance(logits: Tensor, labels: Tensor, means: Tensor, temperature: float = 1.0) -> Tensor:
    """(C,): T² (1/n_c) Σ_{i: y_i=c} KL(softmax(m_c/T) ‖ softmax(z_i/T)), in nats.

    IKD's own term (Wang et al., AAAI 2025), class by class; means (C, C): class-mean logits, a class a row.
    """
    rows = kl(log_softmax(means[labels], temperature), log_softmax(logits, temperature))
    return class_means(temperature**2 * rows, labels, logits.shape[1])


class Summary(NamedTuple):
    """A network on a test set of `images` images.

    top1, top5: accuracy in percent; nll, in nats; ece in [0, 1], of BINS bins
    spread, kl, ikd: means over the classes that have images
    by_class: "images", "top1", "spread" (within_class_spread), "kl" (within_class_kl) and "ikd" (ikd_distance to the
        network's own class-mean logits at T=1), each (C,)
    """

    images: int
    top1: float
    top5: float
    nll: float
    ece: float
    spread: float
    kl: float
    ikd: float
    by_class: dict[str, Tensor]


def summary(logits: Tensor, labels: Tensor) -> Summary:
    """The figures of logits (N, C) for labels (N,)."""
    top1, top5 = (100 * count_correct(logits, labels).double() / len(labels)).tolist()
    classes = logits.shape[1]
    by_class = {
        "images": torch.bincount(labels, minlength=classes),
        "top1": class_accuracy(logits, labels),
        "spread": within_class_spread(logits, labels),
        "kl": within_class_kl(logits, labels),
        "ikd": ikd_distance(logits, labels, class_means(logits, labels, classes)),
    }
    return Summary(len(labels), top1, top5, nll(logits, labels), ece(reliability(logits, labels)),
                   mean(by_class["spread"]), mean(by_class["kl"]), mean(by_class["ikd"]), by_class)


def logit_correlation(logits: Tensor) -> Tensor:
    """(C, C) float64: Pearson's correlation, over the N images, of the logits of each two classes.

    A class whose logit is the same for all images has a row and a column of 0.
    """
    z = logits.double()
    z = z - z.mean(0)
    unit = F.normalize(z, dim=0)
    return unit.T @ unit
