"""What two or more methods share."""
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo._base import MethodError, Setup

OTHERS = ("methods that read logits or the pooled vector (kd, dkd, nkd, wttm, ctkd, dist, mlkd, rkd, pkt, correlation, "
          "crd) serve any pair")


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, channels, height, width); the higher map average-pooled to the other's size."""
    if a.shape[2] > b.shape[2]:
        return average_pool(a, b.shape[2], b.shape[3]), b
    if a.shape[2] < b.shape[2]:
        return a, average_pool(b, a.shape[2], a.shape[3])
    return a, b


def average_pool(f: Tensor, height: int, width: int | None = None) -> Tensor:
    """(B, channels, h, w) average-pooled to height x width, by default a square."""
    width = width or height
    h, w = f.shape[2:]
    if h % height == 0 and w % width == 0:  # with a gradient that repeats itself on CUDA
        return F.avg_pool2d(f, (h // height, w // width))
    return F.adaptive_avg_pool2d(f, (height, width))


def check_stages(setup: Setup, name: str) -> None:
    """Raise MethodError where the networks have different numbers of stages, which `name` has to pair."""
    s, t = len(setup.student.stages), len(setup.teacher.stages)
    if s != t:
        raise MethodError(f"{name} pairs the stages of both networks, and {setup.student_name} has {s}, "
                          f"{setup.teacher_name} {t}: {OTHERS}")


def check_channels(setup: Setup, name: str, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> None:
    """Raise MethodError where paired feature maps differ in channels."""
    s, t = ([f.shape[1] for f in maps] for maps in (student, teacher))
    if s != t:
        raise MethodError(f"{name} needs equal channels: {setup.student_name} has {s}, {setup.teacher_name} {t}; "
                          f"{OTHERS}, and attention, nst, vid and reviewkd stages of any width")


class Embed(nn.Module):
    """A linear map of the flattened features, (B, ...) -> (B, dim_out), of unit length where asked."""

    def __init__(self, dim_in: int, dim_out: int, unit_length: bool = False):
        super().__init__()
        self.linear, self.unit_length = nn.Linear(dim_in, dim_out), unit_length

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.flatten(1))
        return F.normalize(x, dim=1) if self.unit_length else x


class ConvRegressor(nn.Module):
    """A convolution from one feature map's shape to another's, with batch norm and, where asked, ReLU.

    Half the height: 3x3 of stride 2; double: transposed 4x4 of stride 2; else a valid convolution.
    shapes: (B, channels, height, width). Raises ValueError where the target is larger in another ratio.
    """

    def __init__(self, shape, target_shape, relu: bool):
        super().__init__()
        (channels, height, width), (out, out_height, out_width) = shape[1:], target_shape[1:]
        if height == 2 * out_height:
            self.conv: nn.Module = nn.Conv2d(channels, out, 3, stride=2, padding=1)
        elif 2 * height == out_height:
            self.conv = nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)
        elif height >= out_height:
            self.conv = nn.Conv2d(channels, out, (1 + height - out_height, 1 + width - out_width))
        else:
            raise ValueError(f"no convolution leads from height {height} to {out_height}")
        self.bn = nn.BatchNorm2d(out)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))
