"""N-to-one representation matching.

Liu, Li, Li and Yao, "NORM: Knowledge Distillation via N-to-One Representation Matching", ICLR 2023.
The student's last stage, expanded by a linear layer to N times the teacher's channels, matches the teacher's
last stage N times.

The authors' student also adds the expanded map, brought back to its own channels, to its last stage, and both
networks' logits are normalised before the cross-entropy and the KD loss. Here a method is a term of the loss and the
student stays its architecture: the expansion is trained with it and left behind, and only the KD loss of this
method normalises.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method, MethodError
from distiller_zoo.kd import TEMPERATURE, DistillKL
from helper.util.arguments import positive_int

__all__ = ["NORMLoss", "normalise_logits"]

# The weight of the match by epoch: from which epoch on, and how much (the authors' settings for 240 epochs).
SCHEDULE = ((0, 0.1), (10, 0.5), (20, 1.0), (180, 0.5), (210, 0.1))


class NORMLoss(nn.Module):
    """N * mean squared error of the expanded map and N times the teacher's map (Liu et al. 2023, equation 4)."""

    def forward(self, expanded: Tensor, f_t: Tensor) -> Tensor:
        """expanded (B, N * channels, h, w), f_t (B, channels, h', w'), max-pooled if larger; a scalar."""
        if f_t.shape[2] > expanded.shape[2]:
            f_t = F.adaptive_max_pool2d(f_t, expanded.shape[2:])
        copies = expanded.unflatten(1, (-1, f_t.shape[1]))
        return copies.shape[1] * (copies - f_t[:, None]).square().mean()


def normalise_logits(logits: Tensor) -> Tensor:
    """2.5 times the layer-normalised logits, (B, C)."""
    return 2.5 * F.layer_norm(logits.float(), logits.shape[1:], eps=1e-7)


class Norm(Method):
    name = "norm"
    paper = "Liu et al., NORM: Knowledge Distillation via N-to-One Representation Matching, ICLR 2023"
    formula = ("b · β(epoch) · N · MSE(BN(conv(f_s)), N times f_t), last stage "
               "+ a · T²·KL(p_t^T ‖ p_s^T) of normalised logits")
    flags = (Flag("--norm_N", 8, positive_int, "N, how many times the student matches the teacher"), TEMPERATURE)
    reads = frozenset({"logits", "stages"})
    alpha, alpha_adds_kd = 0.0, False
    beta = 1.0
    in_published_code = False
    share: Tensor

    def __init__(self, setup, options):
        super().__init__(setup, options)
        f_s, f_t = setup.student.stages[-1], setup.teacher.stages[-1]
        if f_t.shape[2] < f_s.shape[2]:
            raise MethodError(f"norm: the last map of {setup.teacher_name} is smaller than that of "
                              f"{setup.student_name}: take another method")
        self.kd_weight, self.weight = options.alpha, options.beta
        self.loss, self.kd = NORMLoss(), DistillKL(options.kd_T)
        channels = options.norm_N * f_t.shape[1]
        self.expand = nn.Sequential(nn.Conv2d(f_s.shape[1], channels, 1, bias=False), nn.BatchNorm2d(channels))
        # A tensor, so that it can change beneath a captured step.
        self.register_buffer("share", torch.tensor(1.0))

    def start_epoch(self, epoch, generator):
        self.share.fill_([share for first, share in SCHEDULE if epoch >= first][-1])

    def forward(self, student, teacher, batch):
        match = self.weight * self.share * self.loss(self.expand(student.stages[-1]), teacher.stages[-1])
        if not self.kd_weight:
            return match
        return match + self.kd_weight * self.kd(normalise_logits(student.logits), normalise_logits(teacher.logits))
