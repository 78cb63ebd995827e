"""The losses on features: golden values and gradients, and equality with the published forms."""
import zlib
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distiller_zoo import (
    FSP,
    KDSVD,
    PKT,
    ABLoss,
    Attention,
    Correlation,
    CRDLoss,
    FactorTransfer,
    HintLoss,
    NSTLoss,
    RKDLoss,
    Similarity,
    VIDLoss,
)
from distiller_zoo._layers import average_pool
from tests.golden.cases import LOSSES, A, check

STUDENT_SHAPES = [(16, 8, 16, 16), (16, 16, 8, 8), (16, 32, 4, 4)]

TEACHER_SHAPES = [(16, 16, 16, 16), (16, 24, 8, 8), (16, 40, 4, 4)]


def maps(name, shapes):
    return [A(f"a/{name}{i}", shape) for i, shape in enumerate(shapes)]


@pytest.fixture
def features():
    """fs, ft, fs2 of the golden cases; the student's require gradients."""
    fs, ft, fs2 = maps("fs", STUDENT_SHAPES), maps("ft", TEACHER_SHAPES), maps("fs2", TEACHER_SHAPES)
    for f in (*fs, *fs2):
        f.requires_grad_()
    return fs, ft, fs2


@pytest.fixture
def vectors():
    """vs, vt, vs2 of the golden cases."""
    return A("a/vs", (16, 24)).requires_grad_(), A("a/vt", (16, 40)), A("a/vs2", (16, 40)).requires_grad_()


@pytest.mark.parametrize("case, loss", [("attention", Attention()), ("nst", NSTLoss())])
def test_losses_of_all_stages_equal_golden(features, case, loss):
    fs, ft, _ = features
    check(case, sum(loss(fs, ft)), *fs)


@pytest.mark.parametrize("case, loss", [
    ("kdsvd", KDSVD()), ("abound", ABLoss(3)), ("fsp", FSP(TEACHER_SHAPES, TEACHER_SHAPES))])
def test_losses_of_stages_of_equal_shape_equal_golden(features, case, loss):
    _, ft, fs2 = features
    check(case, sum(loss(fs2, ft)), *fs2)


@pytest.mark.parametrize("case, loss", [("hint", HintLoss()), ("factor", FactorTransfer())])
def test_losses_of_one_map_equal_golden(features, case, loss):
    _, ft, fs2 = features
    check(case, loss(fs2[1], ft[1]), fs2[1])


def test_similarity_equals_golden(features):
    fs, ft, _ = features
    check("similarity", sum(Similarity()([fs[1]], [ft[1]])), fs[1])


@pytest.mark.parametrize("case, loss", [("rkd", RKDLoss()), ("pkt", PKT())])
def test_losses_of_vectors_equal_golden(vectors, case, loss):
    vs, vt, _ = vectors
    check(case, loss(vs, vt), vs)


def test_correlation_equals_golden(vectors):
    _, vt, vs2 = vectors
    check("correlation", Correlation()(vs2, vt), vs2)


def test_vid_equals_golden(features):
    fs, ft, _ = features
    loss = VIDLoss(16, 24, 24)
    assert F.softplus(loss.log_scale).add(1e-5).tolist() == pytest.approx([5.0] * 24)
    loss.load_state_dict({key: A(f"vid/{key}", tuple(value.shape), 0.1) for key, value in loss.state_dict().items()})
    check("vid", loss(fs[1], ft[1]), fs[1])


@pytest.fixture
def crd():
    """The golden CRD loss and its inputs."""
    loss = CRDLoss(Namespace(s_dim=24, t_dim=40, feat_dim=16, n_data=200, nce_t=0.07, nce_m=0.5))
    state = {key: A(f"crd/{key}", tuple(value.shape), 0.3) if value.ndim else value
             for key, value in loss.state_dict().items()}
    for bank in ("contrast.memory_v1", "contrast.memory_v2"):
        state[bank] = F.normalize(state[bank], dim=1)
    loss.load_state_dict(state)
    rng = np.random.default_rng(zlib.crc32(b"a/crd"))
    index = torch.from_numpy(rng.permutation(200)[:16])
    negatives = torch.from_numpy(rng.integers(0, 200, (16, 32)))
    return loss, index, torch.cat([index[:, None], negatives], 1)


def test_crd_equals_golden_in_two_calls_and_in_its_normalisers(crd, vectors):
    loss, index, contrast = crd
    vs, vt, _ = vectors
    check("crd_step1", loss(vs, vt, index, contrast), vs)
    normalisers = [loss.contrast.Z_v1.item(), loss.contrast.Z_v2.item()]
    assert normalisers == pytest.approx(LOSSES["a/crd_Z"], rel=1e-4)
    check("crd_step2", loss(vs, vt, index, contrast), vs)
    assert [loss.contrast.Z_v1.item(), loss.contrast.Z_v2.item()] == normalisers


def test_crd_equals_the_gather_of_rows(crd, vectors):
    """The published way: the banks' rows, (B, 1 + m, width), and a batched product."""
    loss, index, contrast = crd
    vs, vt, _ = vectors
    v1, v2 = loss.embed_s(vs), loss.embed_t(vt)
    expected = 0
    for v, bank in ((v1, loss.contrast.memory_v2), (v2, loss.contrast.memory_v1)):
        scores = (bank[contrast] @ v[:, :, None]).squeeze(2).div(0.07).exp()
        h = scores / (scores.mean() * 200).detach()
        noise = 32 / 200
        expected = expected - ((h[:, 0] / (h[:, 0] + noise + 1e-7)).log().sum()
                               + (noise / (h[:, 1:] + noise + 1e-7)).log().sum()) / 16
    actual = loss(vs, vt, index, contrast)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, vs), torch.autograd.grad(expected, vs))


def test_crd_moves_the_rows_of_the_batch_alone_and_keeps_them_of_unit_length(crd, vectors):
    loss, index, contrast = crd
    vs, vt, _ = vectors
    before = loss.contrast.memory_v1.clone()
    v1 = loss.embed_s(vs).detach()
    loss(vs, vt, index, contrast)
    after = loss.contrast.memory_v1
    moved = (before != after).any(1)
    assert sorted(moved.nonzero().squeeze(1).tolist()) == sorted(index.tolist())
    torch.testing.assert_close(after[index], F.normalize(0.5 * before[index] + 0.5 * v1, dim=1))


def test_nst_equals_the_broadcast_over_all_pairs_of_channels():
    f_s, f_t = torch.randn(3, 5, 4, 4), torch.randn(3, 7, 4, 4)

    def kernel(a, b):
        a, b = (F.normalize(f.flatten(2), dim=2) for f in (a, b))
        return (a[:, None] * b[:, :, None]).sum(-1).square().mean()

    expected = kernel(f_t, f_t) + kernel(f_s, f_s) - 2 * kernel(f_s, f_t)
    torch.testing.assert_close(NSTLoss()([f_s], [f_t])[0], expected)


def test_the_larger_map_is_pooled_to_the_smaller():
    large, small = torch.randn(2, 6, 8, 8), torch.randn(2, 6, 4, 4)
    pooled = F.avg_pool2d(large, 2)
    vid = VIDLoss(6, 6, 6)
    for f_s, f_t, p_s, p_t in ((large, small, pooled, small), (small, large, small, pooled)):
        for loss in (Attention(), NSTLoss()):
            torch.testing.assert_close(loss([f_s], [f_t]), loss([p_s], [p_t]))
        for loss in (vid, FactorTransfer()):
            torch.testing.assert_close(loss(f_s, f_t), loss(p_s, p_t))


def test_kdsvd_has_finite_gradients_where_channels_are_dead():
    g_t = [torch.randn(2, 8, 8, 8).relu(), torch.randn(2, 8, 4, 4).relu()]
    g_s = [torch.randn(2, 8, 8, 8).relu(), torch.randn(2, 8, 4, 4).relu()]
    for f in g_s:
        f[:, 3:] = 0
        f.requires_grad_()
    gradients = torch.autograd.grad(sum(KDSVD()(g_s, g_t)), g_s)
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("size", [1, 2])
def test_tiny_batches_give_finite_losses_and_gradients(size):
    f_s, f_t = torch.randn(size, 6, requires_grad=True), torch.randn(size, 6)
    for loss in (RKDLoss(), PKT(), Correlation()):
        value = loss(f_s, f_t)
        (gradient,) = torch.autograd.grad(value, f_s)
        assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("size, to", [((8, 8), (4, 4)), ((8, 6), (4, 3)), ((7, 7), (4, 4))])
def test_pooling_uses_the_operator_with_a_repeatable_gradient_where_sizes_divide(size, to):
    """Adaptive pooling has none on CUDA; the values are the same."""
    f = torch.randn(2, 3, *size, requires_grad=True)
    pooled = average_pool(f, *to)
    torch.testing.assert_close(pooled, torch.nn.functional.adaptive_avg_pool2d(f, to))
    divides = size[0] % to[0] == 0
    assert pooled.grad_fn.name() == ("AvgPool2DBackward0" if divides else "AdaptiveAvgPool2DBackward0")
