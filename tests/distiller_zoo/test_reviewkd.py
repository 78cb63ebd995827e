"""ReviewKD: its fusions, its loss and what it refuses."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distiller_zoo import ABF, HCL, MethodError
from tests.support.terms import REVIEWED, method


def test_hcl_is_the_weighted_mean_of_errors_at_the_maps_size_and_below():
    sizes = [(8, {8: 1, 4: 1 / 2, 2: 1 / 4, 1: 1 / 8}), (4, {4: 1, 2: 1 / 2, 1: 1 / 4}), (1, {1: 1}),
             (7, {7: 1, 4: 1 / 2, 2: 1 / 4, 1: 1 / 8})]
    generator = torch.Generator().manual_seed(0)
    maps = [[torch.randn(3, 5, size, size, generator=generator) for size, _ in sizes] for _ in range(2)]

    def pooled(f, n):  # the mean of the window of each cell, windows overlapping where n does not divide
        h, f = f.shape[2], np.asarray(f.double())
        edges = [(i * h // n, -(-(i + 1) * h // n)) for i in range(n)]
        return np.array([[f[:, :, a:b, c:d].mean((2, 3)) for c, d in edges] for a, b in edges])

    expected = 0
    for s, t, (_, weights) in zip(*maps, sizes, strict=True):
        errors = {n: ((pooled(s, n) - pooled(t, n)) ** 2).mean() for n in weights}
        expected += sum(weights[n] * errors[n] for n in weights) / sum(weights.values())
    assert HCL()(*maps).item() == pytest.approx(expected, rel=1e-5)


def normalised(x):
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()


def repeated(x, size):
    rows = [i * x.shape[2] // size for i in range(size)]
    return x[:, :, rows][:, :, :, rows]


def fused_by_hand(abf, f, deeper, size):
    """ABF of the paper's figure 3, from the weights of `abf`."""
    x = normalised(torch.einsum("bchw,dc->bdhw", f, abf.reduce[0].weight[:, :, 0, 0]))
    if deeper is not None:
        y = repeated(deeper, f.shape[2])
        share = torch.einsum("bchw,dc->bdhw", torch.cat([x, y], 1), abf.attend[0].weight[:, :, 0, 0])
        share = torch.sigmoid(share + abf.attend[0].bias[:, None, None])
        x = share[:, :1] * x + share[:, 1:] * y
    x = repeated(x, size)
    return normalised(F.conv2d(F.pad(x, (1, 1, 1, 1)), abf.expand[0].weight)), x


@pytest.mark.parametrize("size", [8, 4, 16])
def test_abf_fuses_a_stage_with_the_deeper_ones(size):
    torch.manual_seed(0)
    f, deeper, abf = torch.randn(4, 6, 8, 8), torch.randn(4, 5, 3, 3), ABF(6, 5, 9, True)
    for got, expected in zip(abf(f, deeper, (size, size)), fused_by_hand(abf, f, deeper, size), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_reviewkd_compares_from_the_pooled_vector_up_with_the_teachers_preactivations():
    student, teacher = REVIEWED
    term = method("reviewkd", "-b", 2, student=student, teacher=teacher)
    deeper, expected = None, 0.0
    pairs = [(student.stages[i], teacher.preacts[i], term.fusions[i]) for i in range(3)]
    pairs.append((student.pooled[:, :, None, None], teacher.pooled[:, :, None, None], term.fusions[3]))
    for f, f_t, abf in reversed(pairs):
        out, deeper = fused_by_hand(abf, f, deeper, f_t.shape[2])
        expected = expected + HCL()([out], [f_t])
    term.start_epoch(1, None)
    assert term(student, teacher, None).item() == pytest.approx(2 * expected.item(), rel=1e-4)


@pytest.mark.parametrize("samples, batch_size", [(65, 64), (60, 1)])
def test_reviewkd_refuses_a_batch_of_one(samples, batch_size):
    with pytest.raises(MethodError, match="one is left alone: give another --batch_size"):
        method("reviewkd", "--batch_size", batch_size, student=REVIEWED[0], teacher=REVIEWED[1], samples=samples)
