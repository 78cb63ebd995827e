"""Multi-level logit distillation.

Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023.
KD, class correlation and batch correlation of softened predictions, summed over five temperatures, of a weakly
and a strongly augmented view of each image.

This is what the authors' code computes. There the shares h of images, and h' of classes, of which the teacher is
least sure (up to the median) multiply averages, where the paper masks rows; the strong view's KD at the last two
temperatures reads the weak view; the strong view has no correlation terms.
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._logits import kl, log_softmax
from distiller_zoo.kd import LOGIT_STD, preparation
from helper.util.arguments import positive_float

__all__ = ["MLKDLoss"]

TEMPERATURES = 3.0, 5.0, 2.0, 6.0  # beside the base one


class MLKDLoss(nn.Module):
    """The three levels (Jin et al. 2023, section 3) as their code has them.

    T: the base temperature
    """

    def __init__(self, T: float = 4.0):
        super().__init__()
        self.temperatures = (T, *TEMPERATURES)

    def forward(self, student: Tensor, teacher: Tensor, student_strong: Tensor | None = None,
                teacher_strong: Tensor | None = None) -> Tensor:
        """The sum of all levels: logits (B, C) of the weak view and, where there is one, the strong one; a scalar."""
        s, t = ([z for z in views if z is not None] for views in ((student, student_strong), (teacher, teacher_strong)))
        return self.kd(s, t, teacher) + sum(self.correlations(student, teacher))

    def kd(self, student: Sequence[Tensor], teacher: Sequence[Tensor], confidence: Tensor) -> Tensor:
        """The instance level: the logits of the weak view, or of both, (B, C) each; a scalar.

        confidence: the teacher's logits of the weak view, before any preparation
        """
        h = _share_of_unsure(log_softmax(confidence).exp().amax(1))
        weak = torch.stack([_kd(student[0], teacher[0], T) for T in self.temperatures])
        if len(student) == 1:
            return h * weak.sum()
        strong = torch.stack([_kd(student[1], teacher[1], T) for T in self.temperatures[:3]])
        return h * weak.sum() + strong.sum() + weak[3:].sum()

    def correlations(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The levels of classes and of the batch: logits (B, C) each; a scalar each."""
        p = log_softmax(teacher).exp()
        h, h_classes = _share_of_unsure(p.amax(1)), _share_of_unsure(p.sum(0))
        pairs = [(log_softmax(student, T).exp(), log_softmax(teacher, T).exp()) for T in self.temperatures]
        classes = torch.stack([(t.T @ t - s.T @ s).square().sum() for s, t in pairs]).sum() / student.shape[1]
        batch = torch.stack([(t @ t.T - s @ s.T).square().sum() for s, t in pairs]).sum() / len(student)
        return h_classes * classes, h * batch


def _kd(s, t, T):
    return kl(log_softmax(t, T), log_softmax(s, T)).mean() * T**2


def _share_of_unsure(confidence):
    """The part of the entries, (n,), that are not above their median."""
    ordered = confidence.sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return (confidence <= median).float().mean()


class MultiLevel(Method):
    name = "mlkd"
    paper = "Jin et al., Multi-Level Logit Distillation, CVPR 2023"
    formula = ("b · Σ_T [h·KD_T(s_w, t_w) + KD_T(s_s, t_s) (for 3 of the T; KD_T(s_w, t_w) for 2) + h·‖P_t P_tᵀ − "
               "P_s P_sᵀ‖_F²/B + h′·‖P_tᵀP_t − P_sᵀP_s‖_F²/C], of a weak and a strong view; r·CE of both views")
    flags = (
        Flag("--mlkd_T", 4.0, positive_float, "the base temperature, beside 2, 3, 5 and 6"),
        Flag("--mlkd_views", 2, int, "1: without the strongly augmented view", (1, 2)),
        LOGIT_STD,
    )
    reads = frozenset({"logits", "strong"})
    whole_batch = True
    beta = 0.9
    in_published_code = False

    def __init__(self, setup, options):
        self.reads = self.reads if options.mlkd_views == 2 else frozenset({"logits"})
        super().__init__(setup, options)
        self.weight, self.loss = options.beta, MLKDLoss(options.mlkd_T)
        self.prepare = preparation(setup, options)

    def forward(self, student, teacher, batch):
        fields = ("logits", "strong") if "strong" in self.reads else ("logits",)
        s, t = ([self.prepare(getattr(network, field)) for field in fields] for network in (student, teacher))
        kd = self.loss.kd(s, t, teacher.logits)
        # The published code standardises the logits of this level alone.
        return self.weight * (kd + sum(self.loss.correlations(student.logits, teacher.logits)))
