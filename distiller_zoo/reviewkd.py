"""Knowledge review.

Chen, Liu, Zhao and Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021.
From the deepest feature on, each of the student's is fused with what is deeper (ABF) and compared, at the
teacher's shape, with the teacher's of the same depth at several scales (HCL). The features are, as the
authors have it for CIFAR, the stages and the pooled vector as a 1x1 map, the teacher's stages before their last
ReLU; the weight rises over the first epochs. The authors' weight for resnet32x4 -> resnet8x4, the default
here, is 5; docs/methods.md lists others.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Method, MethodError
from distiller_zoo._layers import average_pool, check_stages
from helper.util import distributed

__all__ = ["ABF", "HCL"]

LEVELS = (4, 2, 1)  # HCL's pooled sizes below a map's own
WIDTH = 512  # the fused maps have the pooled vector's width, at most this


class ABF(nn.Module):
    """Attention-based fusion of a stage's map with the one fused from deeper stages.

    channels: the student's; width: of fused maps; out: the teacher's; fuses: False for the deepest map
    """

    def __init__(self, channels: int, width: int, out: int, fuses: bool):
        super().__init__()
        self.reduce = _convolution(channels, width, 1)
        self.expand = _convolution(width, out, 3)
        self.attend = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuses else None

    def forward(self, f: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """f: (B, channels, h, w), deeper: (B, width, h', w'), size: the teacher's (H, W).

        Returns (B, out, H, W), to be compared, and (B, width, H, W), for the next shallower stage.
        """
        fused = self.reduce(f)
        if self.attend is not None:
            deeper = _resize(deeper, f.shape[2:])
            share, share_deeper = self.attend(torch.cat([fused, deeper], dim=1)).split(1, dim=1)
            fused = share * fused + share_deeper * deeper
        fused = _resize(fused, size)
        return self.expand(fused), fused


def _convolution(channels, out, kernel):
    convolution = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


def _resize(f, size):
    return f if f.shape[2:] == size else F.interpolate(f, size, mode="nearest")


class HCL(nn.Module):
    """The hierarchical context loss: for each pair, the mean of squared errors at several scales.

    The maps as they are weigh 1, pooled to 4x4 1/2, to 2x2 1/4, to 1x1 1/8 (of those smaller than the map,
    the weights starting at 1/2), over the sum of the weights.
    """

    def forward(self, f_s: list[Tensor], f_t: list[Tensor]) -> Tensor:
        """Pairs of one shape, each (B, channels, height, width); a scalar, the sum over pairs."""
        return sum(self._pair(s, t) for s, t in zip(f_s, f_t, strict=True))

    def _pair(self, s, t):
        pairs = [(s, t)] + [(average_pool(s, level), average_pool(t, level)) for level in LEVELS if level < s.shape[2]]
        weights = [0.5**i for i in range(len(pairs))]
        errors = [weight * F.mse_loss(*pair) for weight, pair in zip(weights, pairs, strict=True)]
        return sum(errors) / sum(weights)


class KnowledgeReview(Method):
    name = "reviewkd"
    paper = "Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021"
    formula = "b · Σ_{stages, pooled} HCL(ABF(f_s), f_t), f_t before the stage's last ReLU"
    reads = frozenset({"stages", "preacts", "pooled"})
    beta = 5.0
    ramp = 20
    in_published_code = False

    def __init__(self, setup, options):
        super().__init__(setup, options)
        check_stages(setup, self.name)
        images, batch_size = len(setup.labels), options.batch_size
        if 1 in (*distributed.share_sizes(batch_size), *distributed.share_sizes(images % batch_size)):
            raise MethodError(f"reviewkd normalises 1x1 maps over a batch, and of {images} images in batches of "
                              f"{batch_size} one is left alone: give another --batch_size")
        self.weight, self.loss = options.beta, HCL()
        maps_s, maps_t = _maps(setup.student.stages, setup.student), _maps(setup.teacher.preacts, setup.teacher)
        width = min(WIDTH, setup.student.pooled.shape[1])
        self.fusions = nn.ModuleList(ABF(s.shape[1], width, t.shape[1], s is not maps_s[-1])
                                     for s, t in zip(maps_s, maps_t, strict=True))

    @staticmethod
    def growth(epoch, ramp):
        return min((epoch - 1) / ramp, 1.0)  # as published: nothing in the first epoch

    def forward(self, student, teacher, batch):
        maps_t = _maps(teacher.preacts, teacher)
        reviewed, deeper = [], None
        for f, f_t, fuse in reversed(list(zip(_maps(student.stages, student), maps_t, self.fusions, strict=True))):
            out, deeper = fuse(f, deeper, f_t.shape[2:])
            reviewed.append(out)
        return self.weight * self.loss(reviewed, maps_t[::-1])


def _maps(stages, outputs):
    """Stages, and the pooled vector as a 1x1 map."""
    return [*stages, outputs.pooled[:, :, None, None]]
