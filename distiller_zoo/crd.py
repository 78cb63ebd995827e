"""Contrastive representation distillation.

Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020.
Noise-contrastive estimation (equation 18) of each network's embedding against a memory bank of the other's.

Its memory at the published setting is measured by scripts/experiments/measure_crd.py; see docs/methods.md.
"""
from argparse import Namespace

import torch
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._layers import Embed
from distiller_zoo.correlation import FEAT_DIM
from helper.util.arguments import positive_float, positive_int, unit_float

__all__ = ["CRDLoss"]

EPSILON = 1e-7


class CRDLoss(nn.Module):
    """NCE in both directions: the student against the bank of the teacher's embeddings, and vice versa.

    opt: s_dim and t_dim, the widths of the vectors; feat_dim, of the embeddings; n_data, the number of
    training samples; nce_t, the temperature; nce_m, the momentum of the banks; nce_k, how many negatives are drawn
    where none are given
    """

    def __init__(self, opt):
        super().__init__()
        self.embed_s = Embed(opt.s_dim, opt.feat_dim, unit_length=True)
        self.embed_t = Embed(opt.t_dim, opt.feat_dim, unit_length=True)
        self.contrast = Contrast(opt.feat_dim, opt.n_data, opt.nce_t, opt.nce_m)
        self.n_data, self.nce_k = opt.n_data, getattr(opt, "nce_k", None)

    def forward(self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor | None = None) -> Tensor:
        """f_s (B, s_dim), f_t (B, t_dim), idx (B,) the samples, contrast_idx (B, 1 + m) the positive
        first, then m negatives; a scalar. The banks are updated afterwards.

        Without contrast_idx the negatives are drawn, as published, uniformly among all samples. Raises ValueError where
        opt has no nce_k for it.
        """
        if contrast_idx is None:
            if self.nce_k is None:
                raise ValueError("give contrast_idx, or an opt with nce_k, the number of negatives to draw")
            negatives = torch.randint(self.n_data, (len(idx), self.nce_k), device=idx.device)
            contrast_idx = torch.cat([idx[:, None], negatives], dim=1)
        # exp(1 / nce_t) is beyond float16, and bfloat16 would round the scores: float32 whatever comes in.
        with torch.autocast(f_s.device.type, enabled=False):
            return self.contrast(self.embed_s(f_s.float()), self.embed_t(f_t.float()), idx, contrast_idx)


class Contrast(nn.Module):
    """The banks, (samples, width) each and of unit length, their normalisers, and the loss.

    memory_v1 holds the student's embeddings, memory_v2 the teacher's.
    """

    memory_v1: Tensor
    memory_v2: Tensor
    Z_v1: Tensor
    Z_v2: Tensor

    def __init__(self, width: int, samples: int, temperature: float, momentum: float):
        super().__init__()
        self.samples, self.temperature, self.momentum = samples, temperature, momentum
        bound = (3 / width) ** 0.5
        self.register_buffer("memory_v1", torch.empty(samples, width).uniform_(-bound, bound))
        self.register_buffer("memory_v2", torch.empty(samples, width).uniform_(-bound, bound))
        # Below 0 until the first batch sets them, once and for all.
        self.register_buffer("Z_v1", torch.tensor(-1.0))
        self.register_buffer("Z_v2", torch.tensor(-1.0))

    def forward(self, v1: Tensor, v2: Tensor, idx: Tensor, contrast_idx: Tensor) -> Tensor:
        """v1, v2: (B, width), of unit length; a scalar."""
        loss = (NCE.apply(v1, self.memory_v2, self.Z_v1, contrast_idx, self.temperature)
                + NCE.apply(v2, self.memory_v1, self.Z_v2, contrast_idx, self.temperature))
        for memory, v in ((self.memory_v1, v1), (self.memory_v2, v2)):
            moved = self.momentum * memory[idx] + (1 - self.momentum) * v.detach()
            memory[idx] = moved / moved.norm(dim=1, keepdim=True)
        return loss


class NCE(torch.autograd.Function):
    """-(1/B) sum_i [log h+ / (h+ + mP) + sum over negatives of log mP / (h- + mP)], h = exp(v·w / T) / Z, P = 1/n.

    v (B, width), memory (n, width), normaliser () set to n times the mean exp(·) while below 0,
    contrast_idx (B, 1 + m). Only v has a gradient. It is computed with the loss, so that nothing but
    it is kept for the backward pass and the bank may move on. All scores are one product with the whole
    bank, (B, n): the rows of the published way are (B, 1 + m, width), 42 times as much at its setting.
    """

    @staticmethod
    def forward(ctx, v, memory, normaliser, contrast_idx, temperature):
        n, m = len(memory), contrast_idx.shape[1] - 1
        noise = m / n
        all_scores = v @ memory.T
        h = all_scores.gather(1, contrast_idx).div_(temperature).exp_()
        normaliser.copy_(torch.where(normaliser < 0, h.mean() * n, normaliser))
        h /= normaliser
        total = h + (noise + EPSILON)
        ratio = h / total
        loss = -(ratio[:, 0].log().sum() + (noise / total[:, 1:]).log().sum()) / len(v)
        # By the scores: (ratio - 1) for the positive, ratio for a negative; a sample drawn twice adds up.
        ratio[:, 0] -= 1
        by_sample = all_scores.zero_().scatter_add_(1, contrast_idx, ratio)
        ctx.save_for_backward(by_sample @ memory / (temperature * len(v)))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None, None, None, None


class ContrastSampler:
    """Draws what each sample is contrasted with, on the labels' device.

    As the published sampler: negatives uniform among the samples of other classes, without
    replacement unless there are fewer than asked for; the positive is the sample itself, or with
    `relax` any of its class.

    labels: (n,) int64; num_negatives: m
    """

    def __init__(self, labels: Tensor, num_classes: int, num_negatives: int, relax: bool):
        self.labels, self.relax, self.num_negatives = labels, relax, num_negatives
        # The samples in order of class: those of class c lie at first[c] .. first[c] + counts[c].
        self.by_class = torch.argsort(labels, stable=True)
        self.counts = torch.bincount(labels, minlength=num_classes)
        self.first = self.counts.cumsum(0) - self.counts
        self.too_few = len(labels) - self.counts < num_negatives
        self.any_too_few, self.all_too_few = bool(self.too_few.any()), bool(self.too_few.all())

    def draw(self, idx: Tensor, generator: torch.Generator) -> Tensor:
        """idx (B,) -> (B, 1 + m) int64, the positive first."""
        label = self.labels[idx]
        first, count = self.first[label, None], self.counts[label, None]
        positive = idx[:, None]
        if self.relax:
            positive = self.by_class[first + self._uniform((len(idx), 1), generator, count)]
        if self.all_too_few:
            negatives = self._with_replacement(first, count, generator)
        else:
            negatives = self._without_replacement(label, generator)
            if self.any_too_few:
                again = self._with_replacement(first, count, generator)
                negatives = torch.where(self.too_few[label, None], again, negatives)
        return torch.cat([positive, negatives], dim=1)

    def _with_replacement(self, first, count, generator):
        place = self._uniform((len(first), self.num_negatives), generator, len(self.labels) - count)
        return self.by_class[torch.where(place < first, place, place + count)]

    def _without_replacement(self, label, generator):
        # The smallest of uniform keys are a sample without replacement; own classes get the largest key.
        keys = torch.rand(len(label), len(self.labels), generator=generator, device=label.device)
        keys.masked_fill_(self.labels == label[:, None], 2.0)
        return keys.topk(self.num_negatives, dim=1, largest=False, sorted=False).indices

    @staticmethod
    def _uniform(shape, generator, limit):
        """int64 in [0, limit), limit a tensor."""
        draws = torch.rand(shape, generator=generator, device=limit.device, dtype=torch.float64)
        return (draws * limit).long()


class Contrastive(Method):
    name = "crd"
    paper = "Tian et al., Contrastive Representation Distillation, ICLR 2020"
    formula = "b · NCE of embeddings against memory banks, both directions, exp(·/nce_t)/Z, pooled"
    flags = (
        FEAT_DIM,
        Flag("--mode", "exact", str, "the positive: the sample itself, or any of its class", ("exact", "relax")),
        Flag("--nce_k", 16384, positive_int, "negatives of each sample"),
        Flag("--nce_t", 0.07, positive_float, "temperature"),
        Flag("--nce_m", 0.5, unit_float, "momentum of the banks"),
    )
    reads = frozenset({"pooled"})
    whole_batch = True
    beta = 0.8
    uncapturable = "draws its negatives from a generator of the epoch's own"

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.options, self.setup = options.beta, options, setup
        self.sampler = self.generator = None
        sizes = {"s_dim": setup.student.pooled.shape[1], "t_dim": setup.teacher.pooled.shape[1],
                 "n_data": len(setup.labels)}
        self.loss = CRDLoss(Namespace(**sizes, feat_dim=options.feat_dim, nce_t=options.nce_t, nce_m=options.nce_m))

    def start_epoch(self, epoch, generator):
        self.generator = generator
        if self.sampler is None:
            self.sampler = ContrastSampler(self.setup.labels.to(generator.device), self.setup.num_classes,
                                           self.options.nce_k, self.options.mode == "relax")

    def forward(self, student, teacher, batch):
        assert self.sampler is not None  # made at the first epoch's start
        contrast_idx = self.sampler.draw(batch.index, self.generator)
        return self.weight * self.loss(student.pooled, teacher.pooled, batch.index, contrast_idx)
