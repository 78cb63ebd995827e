"""Multi-level logit distillation.

Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023.
Sum over temperatures of T^2 * KL + ||P_t P_t^T - P_s P_s^T||^2 / B + ||P_t^T P_t - P_s^T P_s||^2 / C,
P the (B, C) softened predictions: the levels of instances, of the batch, and of classes.

This is the paper's loss on logits, of the one view that a step here has. The authors' training also shows
each image in a second, strongly augmented view, and weighs parts of the loss by the share of images, or of
classes, that the teacher is least confident of.
"""
from collections.abc import Sequence

from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._logits import kl, log_softmax
from helper.util.arguments import positive_list

__all__ = ["MLKDLoss"]


class MLKDLoss(nn.Module):
    """The three levels (Jin et al. 2023, section 3), summed over `temperatures`."""

    def __init__(self, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)):
        super().__init__()
        self.temperatures = tuple(temperatures)

    def forward(self, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
        """Both (B, C); a scalar."""
        return sum(_levels(log_softmax(logits_teacher, T), log_softmax(logits_student, T), T)
                   for T in self.temperatures)


def _levels(log_p, log_q, T):
    """The teacher's and the student's log-probabilities at temperature T, (B, C); a scalar."""
    p, q = log_p.exp(), log_q.exp()
    instance = kl(log_p, log_q).mean() * T**2
    batch = (p @ p.T - q @ q.T).square().sum() / len(p)
    classes = (p.T @ p - q.T @ q).square().sum() / p.shape[1]
    return instance + batch + classes


class MultiLevel(Method):
    name = "mlkd"
    paper = "Jin et al., Multi-Level Logit Distillation, CVPR 2023"
    formula = "b · Σ_T [T²·KL(p_t^T ‖ p_s^T) + ‖P_t P_tᵀ − P_s P_sᵀ‖_F²/B + ‖P_tᵀP_t − P_sᵀP_s‖_F²/C], one view"
    flags = (Flag("--mlkd_T", "2,3,4,5,6", positive_list, "the temperatures T"),)
    reads = frozenset({"logits"})
    whole_batch = True
    beta = 0.9
    in_published_code = False

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.loss = options.beta, MLKDLoss(options.mlkd_T)

    def forward(self, student, teacher, batch):
        return self.weight * self.loss(student.logits, teacher.logits)
