"""The strongly augmented second view of an image, which some methods read beside the usual one.

Its own crop and mirroring, then two operations, drawn with replacement from the 14 of FixMatch (Sohn et al., NeurIPS
2020), each at a strength that is uniform over its whole range, then a grey square whose side is uniform up to half the
width. Everything is drawn before an epoch, on the CPU, as a pure function of (seed, trial, phase, epoch, image), and
computed on the device for whole batches. Operations on colours equal torchvision.transforms.v2's, geometric ones
Pillow's of nearest pixels.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.util.seeding import derive_seed

OPERATIONS = ("identity", "autocontrast", "equalize", "brightness", "color", "contrast", "sharpness", "posterize",
              "solarize", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
GREY = (125, 123, 114)
# What is drawn for an image, each uniform in [0, 1): the crop's window, whether it is mirrored, the two operations and
# their strengths, the square's side and its centre.
DRAWS = 9


def strong_draws(n: int, seed: int, trial: str, phase: str, epoch: int) -> Tensor:
    """(n, DRAWS) float32, a row for each image of the training set."""
    generator = torch.Generator().manual_seed(derive_seed(seed, trial, phase, epoch, "strong"))
    return torch.rand(n, DRAWS, generator=generator)


def augment(images: Tensor, draws: Tensor) -> Tensor:
    """uint8 (B, 3, height, width), cropped and mirrored, and draws (B, DRAWS) -> the same shape, augmented."""
    for operation, strength in ((2, 3), (4, 5)):
        images = operate(images, (draws[:, operation] * len(OPERATIONS)).long(), draws[:, strength])
    return cover(images, *draws[:, 6:].T)


def operate(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Each image, of uint8 (B, 3, height, width), after its operation, a place in OPERATIONS, (B,) int64.

    strength: (B,), uniform in [0, 1)
    """
    def only(name, value, otherwise):
        """(B, 1, 1, 1): the value for images of this operation; for the others what leaves them as they are."""
        return torch.where(operation == OPERATIONS.index(name), value, otherwise).view(-1, 1, 1, 1)

    from torchvision.transforms.v2 import functional  # its import takes as long as PyTorch's: only who needs it waits

    images = _move(images, only, strength)
    for name, change in (("autocontrast", _autocontrast), ("equalize", functional.equalize)):
        images = torch.where(only(name, True, False), change(images), images)
    x = images.float()
    part = 0.05 + 0.9 * strength  # of the image in a blend
    grey = (0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).floor()
    for name, other in (("brightness", 0.0), ("color", grey), ("contrast", grey.mean((2, 3), keepdim=True)),
                        ("sharpness", _smooth(x))):
        share = only(name, part, 1.0)
        x = (share * x + (1 - share) * other).add_(1e-3).floor_()  # for rounding errors below a whole number
    step = 2 ** (8 - only("posterize", (4 + 4 * strength).floor(), 8.0))
    x = (x / step).floor() * step
    return torch.where(x < only("solarize", 256 * strength, 256.0), x, 255 - x).to(torch.uint8)


def _autocontrast(images):
    """Each channel stretched to 0 to 255; one of a single value stays. torchvision's waits for the device."""
    x = images.float()
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    unit = torch.where(high > low, (high - low) * (1.0 / 255), 1.0)
    return ((x - torch.where(high > low, low, 0.0)) / unit).clamp(0, 255).to(torch.uint8)


def _smooth(x):
    """The mean of each pixel's neighbourhood, itself counting five times; those at the edge stay."""
    kernel = x.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = (F.conv2d(x, kernel, groups=3) / 13).round()
    return out


def _move(images, only, strength):
    """Rotated, sheared or shifted, by the nearest pixel; black comes in from outside. only: see `operate`."""
    height, width = images.shape[2:]
    signed = 2 * strength - 1
    angle = signed * math.radians(30)
    cosine, sine = only("rotate", angle.cos(), 1.0), only("rotate", angle.sin(), 0.0)
    y, x = torch.meshgrid(*(torch.arange(size, device=images.device) + 0.5 for size in (height, width)), indexing="ij")
    from_x, from_y = x - width / 2, y - height / 2
    from_x, from_y = cosine * from_x - sine * from_y + width / 2, sine * from_x + cosine * from_y + height / 2
    from_x = from_x + only("shear_x", 0.3 * signed, 0.0) * y + only("translate_x", 0.3 * width * signed, 0.0)
    from_y = from_y + only("shear_y", 0.3 * signed, 0.0) * x + only("translate_y", 0.3 * height * signed, 0.0)
    column, row = from_x.floor().long(), from_y.floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row * width + column).where(inside, 0).flatten(2).expand(-1, 3, -1)
    return images.flatten(2).gather(2, place).view_as(images) * inside


def cover(images: Tensor, side: Tensor, centre_x: Tensor, centre_y: Tensor) -> Tensor:
    """A grey square over each image, uint8 (B, 3, height, width); side (of half the width), centre: (B,) in [0, 1)."""
    height, width = images.shape[2:]
    side = (side * width / 2).view(-1, 1)

    def covered(centre, size):
        first = (centre.view(-1, 1) * size - side / 2).clamp(min=0).floor()
        place = torch.arange(size, device=images.device)
        return (place >= first) & (place <= first + side)

    square = covered(centre_y, height)[:, :, None] & covered(centre_x, width)[:, None]
    covered_channels = [x.masked_fill(square, grey) for x, grey in zip(images.unbind(1), GREY, strict=True)]
    return torch.stack(covered_channels, dim=1)
