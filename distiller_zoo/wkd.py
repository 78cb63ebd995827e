"""Wasserstein distillation.

Lv, Yang and Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024.
Logit part: cross-entropy of the label's probability, and the entropic Wasserstein distance of the other classes'
distributions, whose cost is how unlike two classes are to the teacher. Feature part: distance of the channels' means
and deviations. Both weights fall to 0 along half a cosine from --wkd_decay on; the first term does not.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method, MethodError
from distiller_zoo._layers import ConvRegressor
from distiller_zoo._logits import log_softmax, log_softmax_without
from helper.util.arguments import nonnegative_float, positive_float, positive_int

__all__ = ["WKDFeatureLoss", "WKDLogitLoss", "cka_cost", "classifier_cost", "wasserstein"]

EPSILON = 1e-8
# The weights a and b and the ratio of means to deviations for resnet32x4 -> resnet8x4, by part.
DEFAULTS = {"l": (600.0, 0.0, 4.0), "f": (0.0, 0.08, 4.0), "lf": (200.0, 0.08, 8.0)}


def cka_cost(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """1 - linear CKA of each two classes' features, (C, C) float32 (Lv et al. 2024, equation 6).

    features: (n, width), of the training set in its order; labels: (n,) int64. The k-th image of a class is paired
    with the k-th of another, as far as the smallest class has images. A class whose images all look the same has a
    CKA of 0 with the others.
    """
    by_class = [features[labels == c].double() for c in range(num_classes)]
    count = min(len(x) for x in by_class)
    if count < 2:
        raise MethodError("wkd compares classes by two images or more of each: give --wkd_cost fc")
    centred = torch.stack([x[:count] - x[:count].mean(0) for x in by_class])
    # |X_jᵀ X_i|² is the inner product of the images' Gram matrices.
    grams = (centred @ centred.transpose(1, 2)).flatten(1)
    products = grams @ grams.T
    norms = products.diagonal().sqrt()
    return (1 - products / (norms[:, None] * norms).clamp(min=1e-30)).float()


def classifier_cost(weight: Tensor) -> Tensor:
    """1 - cosine of each two rows of a classifier's weight, (C, width) -> (C, C)."""
    rows = F.normalize(weight.float(), dim=1)
    return 1 - rows @ rows.T


def wasserstein(a: Tensor, b: Tensor, cost: Tensor, kernel: Tensor, iterations: int) -> Tensor:
    """The transport cost of `iterations` steps of Sinkhorn's algorithm, (B,); its gradient runs through the steps.

    a, b: (B, C), distributions; a class that is 0 in both takes no part
    cost, kernel: (C, C); kernel = exp(-cost / lambda)
    """
    taking_part = ((a > 0) | (b > 0)).to(a)
    u = taking_part / taking_part.sum(1, keepdim=True)
    for _ in range(iterations):
        v = b / (u @ kernel + EPSILON)
        u = a / (v @ kernel.T + EPSILON)
    return (u * (v @ (kernel * cost).T)).sum(1)


class WKDLogitLoss(nn.Module):
    """The loss on logits (Lv et al. 2024, equations 4 and 5).

    distances: (C, C), how unlike the classes are; sharpen: kappa, 1 - exp(-kappa * distance) is the cost (0: the
    distance itself); regularisation: lambda
    """

    cost: Tensor
    kernel: Tensor

    def __init__(self, distances: Tensor, T: float = 8.0, regularisation: float = 0.05, iterations: int = 10,
                 sharpen: float = 1.0):
        super().__init__()
        self.T, self.iterations = T, iterations
        cost = (1 - torch.exp(-sharpen * distances) if sharpen else distances).clamp(min=0) + EPSILON
        self.register_buffer("cost", cost)
        self.register_buffer("kernel", torch.exp(-cost / regularisation))

    def target(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the label's probability alone, batch mean: logits (B, C), target (B,) int64; a scalar."""
        s, t = (log_softmax(z).gather(1, target[:, None]) for z in (logits_student, logits_teacher))
        return -(t.exp() * s).mean()

    def distance(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """The Wasserstein distance over the classes other than the label, batch mean; a scalar."""
        with torch.autocast(logits_student.device.type, enabled=False):
            s, t = (log_softmax_without(z, target, self.T).exp() for z in (logits_student, logits_teacher))
            return wasserstein(s, t, self.cost, self.kernel, self.iterations).mean()


class WKDFeatureLoss(nn.Module):
    """ratio * squared differences of means + those of deviations, of channels by cells of a grid x grid, summed over
    channels, mean over images and cells (Lv et al. 2024, equation 9)."""

    def __init__(self, ratio: float = 4.0, grid: int = 1):
        super().__init__()
        self.ratio, self.grid = ratio, grid

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """(B, channels, height, width) each, sizes that the grid divides; a scalar."""
        (mean_s, deviation_s), (mean_t, deviation_t) = (self._moments(f) for f in (f_s, f_t))
        difference = self.ratio * (mean_s - mean_t).square() + (deviation_s - deviation_t).square()
        return difference.sum(1).mean()

    def _moments(self, f):
        height, width = (size // self.grid for size in f.shape[2:])
        cells = f.unflatten(3, (self.grid, width)).unflatten(2, (self.grid, height)).transpose(3, 4).flatten(4)
        return cells.mean(4), (cells.var(4) + 1e-5).sqrt()


class Wasserstein(Method):
    name = "wkd"
    paper = ("Lv et al., Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation, "
             "NeurIPS 2024")
    formula = ("logits: −mean p_t(y)·log p_s(y) + a·W(p_t^T, p_s^T over the classes but y); last stage: "
               "b·(ratio·|difference of means|² + |difference of deviations|²)")
    flags = (
        Flag("--wkd", "l", str, "the part on logits, on features, or both", ("l", "f", "lf")),
        Flag("--wkd_T", 8.0, positive_float, "temperature of the distance"),
        Flag("--wkd_cost", "cka", str, "how unlike two classes are: by CKA of the teacher's features of the training "
             "images, or by the rows of its classifier", ("cka", "fc")),
        Flag("--wkd_sharpen", 1.0, nonnegative_float, "κ of the cost 1 − exp(−κ·distance); 0: the distance itself"),
        Flag("--wkd_lambda", 0.05, positive_float, "weight of the entropy"),
        Flag("--wkd_iter", 10, positive_int, "steps of Sinkhorn's algorithm"),
        Flag("--wkd_ratio", None, positive_float, "weight of the means beside the deviations (default 4; 8 for lf)"),
        Flag("--wkd_grid", 1, positive_int, "the last map is compared by grid×grid cells"),
        Flag("--wkd_projector", "conv1x1", str, "from the student's channels to the teacher's",
             ("conv1x1", "bottleneck")),
        Flag("--wkd_decay", 150, positive_int, "the epoch from which the weights a and b fall"),
    )
    reads = frozenset({"logits", "stages"})
    alpha, alpha_adds_kd = 600.0, False
    beta = 0.0
    in_published_code = False
    share: Tensor

    @classmethod
    def resolve(cls, options):
        for name, value in zip(("alpha", "beta", "wkd_ratio"), DEFAULTS[options.wkd], strict=True):
            if getattr(options, name) is None:
                setattr(options, name, value)
        for flag, name, part in (("-a", "alpha", "l"), ("-b", "beta", "f")):
            if part not in options.wkd and getattr(options, name) != 0:
                raise MethodError(f"--wkd {options.wkd} has no use for {flag}: leave it out or give --wkd lf")
        super().resolve(options)

    def __init__(self, setup, options):
        self.reads = frozenset({"l": "logits", "f": "stages"}[part] for part in options.wkd)
        super().__init__(setup, options)
        self.active = True
        self.logits: WKDLogitLoss | None = None
        self.features: WKDFeatureLoss | None = None
        self.of_logits, self.of_features = options.alpha, options.beta
        self.first, self.epochs = options.wkd_decay, options.epochs
        if "l" in options.wkd:
            distances = (setup.teacher_classes("cka", cka_cost) if options.wkd_cost == "cka"
                         else classifier_cost(setup.teacher_classifier))
            self.logits = WKDLogitLoss(distances, options.wkd_T, options.wkd_lambda, options.wkd_iter,
                                       options.wkd_sharpen)
        if "f" in options.wkd:
            self.projector = _projector(setup, options)
            self.features = WKDFeatureLoss(options.wkd_ratio, options.wkd_grid)
        # A tensor, so that it can change beneath a captured step.
        self.register_buffer("share", torch.tensor(1.0))

    def start_epoch(self, epoch, generator):
        self.share.fill_(share_of(epoch, self.first, self.epochs))

    def forward(self, student, teacher, batch):
        loss = 0.0
        if self.logits is not None:
            pair = student.logits, teacher.logits, batch.labels
            loss = self.logits.target(*pair) + self.share * self.of_logits * self.logits.distance(*pair)
        if self.features is not None:
            projected = self.projector(student.stages[-1])
            loss = loss + self.share * self.of_features * self.features(projected, teacher.stages[-1])
        return loss


def share_of(epoch: int, first: int, epochs: int) -> float:
    """1 until `first`, then down to 0 at `epochs` along half a cosine."""
    return (1 + math.cos(math.pi * (epoch - first) / (epochs - first))) / 2 if epoch > first else 1.0


def _projector(setup, options):
    """The student's last map at the teacher's channels: a 1x1 convolution (4x4 of stride 2, transposed, from half the
    height) or a bottleneck of 256 channels, then batch norm and ReLU."""
    f_s, f_t = setup.student.stages[-1], setup.teacher.stages[-1]
    doubles = 2 * f_s.shape[2] == f_t.shape[2]
    if f_s.shape[2:] != f_t.shape[2:] and not doubles:
        raise MethodError(f"wkd needs last maps of the teacher's height or half of it: {setup.student_name} has "
                          f"{f_s.shape[2]}, {setup.teacher_name} {f_t.shape[2]}; give --wkd l")
    if f_t.shape[2] % options.wkd_grid or f_t.shape[2] == options.wkd_grid:
        raise MethodError(f"--wkd_grid {options.wkd_grid}: cells of the last map of {setup.teacher_name}, "
                          f"{f_t.shape[2]}×{f_t.shape[3]}, must be equal and larger than a pixel: give a smaller one")
    if doubles or options.wkd_projector == "conv1x1":
        return ConvRegressor(f_s.shape, f_t.shape, relu=True)
    channels, out = f_s.shape[1], f_t.shape[1]
    return nn.Sequential(nn.Conv2d(channels, 256, 1), nn.Conv2d(256, 256, 3, padding=1), nn.Conv2d(256, out, 1),
                         nn.BatchNorm2d(out), nn.ReLU())
