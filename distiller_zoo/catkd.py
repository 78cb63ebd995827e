"""Class attention transfer.

Guo, Yan, Li and Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023.

The authors' networks have no bias in the classifier, and their teacher's is dropped. Here both keep it: it takes
no part in the maps.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import Flag, Method
from distiller_zoo._layers import average_pool
from helper.util.arguments import positive_int

__all__ = ["CATLoss"]


class CATLoss(nn.Module):
    """The squared difference of pooled class activation maps (Guo et al. 2023, equation 6), mean over everything.

    size: r; normalised: each class's r x r values have unit length
    """

    def __init__(self, size: int = 2, normalised: bool = True):
        super().__init__()
        self.size, self.normalised = size, normalised

    def forward(self, cam_student: Tensor, cam_teacher: Tensor) -> Tensor:
        """Both (B, C, height, width), of any sizes; a scalar."""
        s, t = (average_pool(cam, self.size).flatten(2) for cam in (cam_student, cam_teacher))
        if self.normalised:
            s, t = F.normalize(s, dim=2), F.normalize(t, dim=2)
        return F.mse_loss(s, t)


class ClassAttention(Method):
    name = "catkd"
    paper = "Guo et al., Class Attention Transfer Based Knowledge Distillation, CVPR 2023"
    formula = "b · mean (A_s − A_t)², A the class activation maps pooled to r×r, of unit length with --cat_norm on"
    flags = (
        Flag("--cat_size", 2, positive_int, "r, the height and width that the maps are pooled to"),
        Flag("--cat_norm", "on", str, "on: each class's map has unit length", ("on", "off")),
    )
    reads = frozenset({"cam"})
    beta = 400.0
    in_published_code = False

    def __init__(self, setup, options):
        super().__init__(setup, options)
        self.weight, self.loss = options.beta, CATLoss(options.cat_size, options.cat_norm == "on")

    def forward(self, student, teacher, batch):
        return self.weight * self.loss(student.cam, teacher.cam)
