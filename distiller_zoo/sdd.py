"""Scale decoupled distillation.

Wei, Luo and Luo, "Scale Decoupled Distillation", CVPR 2024.
KD or DKD of the logits of each cell of the last map, pooled to m x m for several m; cells on which the
teacher is right where it is wrong on the whole image, or the reverse, weigh 2.
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method, MethodError
from distiller_zoo._layers import average_pool
from distiller_zoo._logits import kl, log_softmax
from distiller_zoo.dkd import dkd_of_rows
from distiller_zoo.kd import TEMPERATURE
from helper.util.arguments import size_list

__all__ = ["SDDLoss", "cell_logits"]


def cell_logits(logits: Tensor, cam: Tensor, sizes: Sequence[int]) -> Tensor:
    """The classifier's logits of the cells of m x m pooled maps, m in `sizes`: (B, sum of m^2, C).

    logits: (B, C); cam: (B, C, h, w), the classifier at each place without its bias. The bias is what the logits
    have beyond the mean of the cam.
    """
    bias = logits - cam.mean((2, 3))
    return torch.cat([average_pool(cam, m).flatten(2) for m in sizes], dim=2).transpose(1, 2) + bias[:, None]


class SDDLoss(nn.Module):
    """The mean over images and cells of the weighted loss (Wei et al. 2024, section 3.3).

    The sum is divided by the number of rows, not by the sum of their weights, as in the authors' code.

    variant: "kd" or "dkd"; alpha: weight of kd, or of TCKD; beta: weight of NCKD
    """

    def __init__(self, variant: str, alpha: float, beta: float = 0.0, T: float = 4.0):
        super().__init__()
        self.variant, self.alpha, self.beta, self.T = variant, alpha, beta, T

    def forward(self, cells_student: Tensor, cells_teacher: Tensor, target: Tensor) -> Tensor:
        """cells (B, N, C), the whole image's first; target (B,) int64; a scalar."""
        right = cells_teacher.argmax(2) == target[:, None]
        weight = 1.0 + (right != right[:, :1])
        s, t = cells_student.flatten(0, 1), cells_teacher.flatten(0, 1)
        if self.variant == "kd":
            losses = self.alpha * self.T**2 * kl(log_softmax(t, self.T), log_softmax(s, self.T))
        else:
            labels = target.repeat_interleave(cells_student.shape[1], output_size=len(s))
            losses = dkd_of_rows(s, t, labels, self.alpha, self.beta, self.T)
        return (weight.flatten() * losses).mean()


class ScaleDecoupled(Method):
    name = "sdd"
    paper = "Wei et al., Scale Decoupled Distillation, CVPR 2024"
    formula = ("mean over images and cells of w · [T²·(a·TCKD + b·NCKD), or with --sdd kd a·T²·KL], w 2 where the "
               "teacher is right on one of cell and image, else 1")
    flags = (
        Flag("--sdd", "dkd", str, "the loss of each cell", ("kd", "dkd")),
        Flag("--sdd_M", "1,2", size_list, "the last map is pooled to m×m cells for each m of this list, the first 1"),
        TEMPERATURE,
    )
    reads = frozenset({"logits", "cam"})
    alpha, alpha_adds_kd = 1.0, False
    beta = 8.0
    ramp = 20
    in_published_code = False

    @classmethod
    def resolve(cls, options):
        if options.sdd_M[0] != 1:
            raise MethodError("--sdd_M: the first size is 1, the whole image: give a list such as 1,2,4")
        if options.sdd == "kd":  # published without a ramp
            if options.beta:
                raise MethodError("--sdd kd has no use for -b: leave it out")
            options.alpha, options.beta = 0.9 if options.alpha is None else options.alpha, 0.0
            options.ramp = options.ramp or 0
        super().resolve(options)

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.sizes = options.sdd_M
        for network, outputs in ((setup.student_name, setup.student), (setup.teacher_name, setup.teacher)):
            if min(outputs.cam.shape[2:]) < self.sizes[-1]:
                raise MethodError(f"--sdd_M {','.join(map(str, self.sizes))}: the last map of {network} is "
                                  f"{'×'.join(map(str, outputs.cam.shape[2:]))}: give no larger sizes")
        self.loss = SDDLoss(options.sdd, options.alpha, options.beta, options.kd_T)

    def forward(self, student, teacher, batch):
        cells = (cell_logits(network.logits, network.cam, self.sizes) for network in (student, teacher))
        return self.loss(*cells, batch.labels)
