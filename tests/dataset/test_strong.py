"""The strongly augmented view: each operation against torchvision's or Pillow's, and its draws."""
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from dataset._strong import DRAWS, GREY, OPERATIONS, augment, cover, operate, strong_draws

B = 24


@pytest.fixture(scope="module")
def images():
    """Smooth images, so that neighbours differ little, of which one is a single colour."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(B, 3, 5, 5, generator=generator)
    images = (torch.nn.functional.interpolate(small, 32, mode="bilinear") * 255).to(torch.uint8)
    images[0] = torch.tensor([10, 200, 30], dtype=torch.uint8).view(3, 1, 1)
    return images


STRENGTHS = torch.linspace(0, 0.995, B)


def by_pillow(image, matrix):
    moved = Image.fromarray(image.permute(1, 2, 0).numpy()).transform((32, 32), Image.Transform.AFFINE, matrix)
    return torch.from_numpy(np.array(moved)).permute(2, 0, 1)


def rotated(image, u):
    turned = Image.fromarray(image.permute(1, 2, 0).numpy()).rotate(60 * u - 30)
    return torch.from_numpy(np.array(turned)).permute(2, 0, 1)


REFERENCES = {
    "identity": lambda x, u: x,
    "autocontrast": lambda x, u: functional.autocontrast(x),
    "equalize": lambda x, u: functional.equalize(x),
    "brightness": lambda x, u: functional.adjust_brightness(x, 0.05 + 0.9 * u),
    "color": lambda x, u: functional.adjust_saturation(x, 0.05 + 0.9 * u),
    "contrast": lambda x, u: functional.adjust_contrast(x, 0.05 + 0.9 * u),
    "sharpness": lambda x, u: functional.adjust_sharpness(x, 0.05 + 0.9 * u),
    "posterize": lambda x, u: functional.posterize(x, int(4 + 4 * u)),
    "solarize": lambda x, u: functional.solarize(x, 256 * u),
    "rotate": rotated,
    "shear_x": lambda x, u: by_pillow(x, (1, 0.6 * u - 0.3, 0, 0, 1, 0)),
    "shear_y": lambda x, u: by_pillow(x, (1, 0, 0, 0.6 * u - 0.3, 1, 0)),
    "translate_x": lambda x, u: by_pillow(x, (1, 0, 32 * (0.6 * u - 0.3), 0, 1, 0)),
    "translate_y": lambda x, u: by_pillow(x, (1, 0, 0, 0, 1, 32 * (0.6 * u - 0.3))),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions_or_pillows(name, images):
    got = operate(images, torch.full((B,), OPERATIONS.index(name)), STRENGTHS)
    expected = torch.stack([REFERENCES[name](x, u.item()) for x, u in zip(images, STRENGTHS, strict=True)])
    difference = (got.int() - expected.int()).abs()
    assert (difference > 0).float().mean() < 0.01
    if name not in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):  # there a tie goes either way
        assert difference.max() <= (name in ("brightness", "color", "contrast", "sharpness"))
    assert got.dtype == torch.uint8 and (name == "identity" or not torch.equal(got, images))


def test_operations_of_a_batch_are_each_images_own(images):
    operation = torch.arange(B) % len(OPERATIONS)
    together = operate(images, operation, STRENGTHS)
    for i in range(B):
        alone = operate(images[i : i + 1], operation[i : i + 1], STRENGTHS[i : i + 1])
        assert torch.equal(together[i], alone[0])


def test_the_square_is_grey_up_to_half_the_width_and_cut_off_at_the_edges(images):
    black = torch.zeros_like(images[:3])
    out = cover(black, *torch.tensor([[0.999, 0.5, 0.999], [0.5, 0.25, 0.0], [0.5, 0.75, 0.99]]))
    grey = torch.tensor(GREY, dtype=torch.uint8).view(3, 1, 1)
    for image, (left, right, top, bottom) in zip(out, [(8, 23, 8, 23), (4, 12, 20, 28), (0, 15, 23, 31)], strict=True):
        covered = (image == grey).all(0)
        rows, columns = covered.any(1).nonzero().flatten(), covered.any(0).nonzero().flatten()
        assert [columns[0], columns[-1], rows[0], rows[-1]] == [left, right, top, bottom]
        assert covered.sum() == len(rows) * len(columns) and not image[:, ~covered].any()


def test_draws_are_a_function_of_seed_trial_phase_epoch_and_image(images):
    draws = strong_draws(50, 0, "1", "train", 1)
    assert draws.shape == (50, DRAWS) and torch.equal(draws, strong_draws(50, 0, "1", "train", 1))
    for other in ((1, "1", "train", 1), (0, "2", "train", 1), (0, "1", "flows", 1), (0, "1", "train", 2)):
        assert not torch.equal(draws, strong_draws(50, *other))
    many = (strong_draws(20_000, 0, "1", "train", 1)[:, [2, 4]] * len(OPERATIONS)).long()
    for column in many.T:
        assert (torch.bincount(column, minlength=14) / 20_000 - 1 / 14).abs().max() < 0.01
    assert not torch.equal(augment(images, draws[:B]), images)
