"""Cross-view consistency.

Zhang, Liu, Cai and Ma, "Cross-View Consistency Regularisation for Knowledge Distillation", ACM MM 2024.
KD within the two views of an image, where the teacher is sure of the weak one, and across them, where it is
sure of the strong one.
"""
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._logits import kl, log_softmax
from distiller_zoo.kd import TEMPERATURE
from helper.util.arguments import unit_float

__all__ = ["CRLDLoss"]


class CRLDLoss(nn.Module):
    """within * [KD(weak, weak) + KD(strong, strong)] + cross * [KD(strong, weak) + KD(weak, strong)].

    Zhang et al. 2024, section 3. The first bracket counts where the teacher's confidence, its largest probability, in
    the weak view is at least `weak`, the second where that in the strong view is at least `strong`; mean over all
    images.
    """

    def __init__(self, within: float = 2.0, cross: float = 0.5, T: float = 4.0, weak: float = 0.9, strong: float = 0.2):
        super().__init__()
        self.within, self.cross, self.T, self.weak, self.strong = within, cross, T, weak, strong

    def forward(self, student: Tensor, student_strong: Tensor, teacher: Tensor, teacher_strong: Tensor) -> Tensor:
        """Logits, (B, C) each; a scalar."""
        sure, sure_strong = (log_softmax(z).exp().amax(1) >= least
                             for z, least in ((teacher, self.weak), (teacher_strong, self.strong)))
        within = sure * (self._kd(student, teacher) + self._kd(student_strong, teacher_strong))
        cross = sure_strong * (self._kd(student_strong, teacher) + self._kd(student, teacher_strong))
        return (self.within * within + self.cross * cross).mean()

    def _kd(self, s, t):
        return kl(log_softmax(t, self.T), log_softmax(s, self.T)) * self.T**2


class CrossView(Method):
    name = "crld"
    paper = "Zhang et al., Cross-View Consistency Regularisation for Knowledge Distillation, ACM MM 2024"
    formula = ("b · mean m_w·[KD(s_w, t_w) + KD(s_s, t_s)] + a · mean m_s·[KD(s_s, t_w) + KD(s_w, t_s)], of a weak and "
               "a strong view, m where the teacher is sure; r·CE of both views")
    flags = (
        TEMPERATURE,
        Flag("--crld_weak", 0.9, unit_float, "the least confidence of the teacher in the weak view"),
        Flag("--crld_strong", 0.2, unit_float, "the least confidence of the teacher in the strong view"),
    )
    reads = frozenset({"logits", "strong"})
    alpha, alpha_adds_kd = 0.5, False
    beta = 2.0
    in_published_code = False

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.loss = CRLDLoss(options.beta, options.alpha, options.kd_T, options.crld_weak, options.crld_strong)

    def forward(self, student, teacher, batch):
        return self.loss(student.logits, student.strong, teacher.logits, teacher.strong)
