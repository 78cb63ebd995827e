"""Decoding images of unknown origin."""
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

# What torchvision's ImageFolder takes for images, and the formats of these names: Pillow reads many more, some of
# them with the help of other programs.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")


def decode(file: BinaryIO, formats: tuple[str, ...] = FORMATS, size: tuple[int, int] | None = None) -> Image.Image:
    """The image in RGB. Raises ValueError where it is not of these formats, has more than 8 bits a channel (which
    Pillow would cut off at 255) or is not of `size` (width, height); and what Pillow raises for a damaged one."""
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise ValueError(f"it is no {', '.join(formats[:-1])} or {formats[-1]}" if formats[1:] else
                         f"it is no {formats[0]}") from None
    with image:
        if image.mode.startswith(("I", "F")):
            raise ValueError("it has more than 8 bits a channel: convert it to 8")
        if size is not None and image.size != size:
            raise ValueError(f"it has {image.width}x{image.height} pixels, not {size[0]}x{size[1]}")
        return image.convert("RGB")
