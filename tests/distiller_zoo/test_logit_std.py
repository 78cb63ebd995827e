"""Logit standardisation, of kd, dkd and nkd."""
import numpy as np
import pytest
import torch

from distiller_zoo import DKD, DistillKL, MethodError, NKDLoss
from distiller_zoo._logits import standardise
from helper import cli
from models import Outputs
from tests.support.terms import Labels, kd, logits, method, softened


def z_score(z):
    z = np.asarray(z.detach().double())
    return torch.from_numpy((z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True))


def test_standardised_logits_have_mean_0_and_deviation_1():
    z = logits(1)
    torch.testing.assert_close(standardise(z).double(), z_score(z), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(standardise(50 * z - 3), standardise(z), atol=1e-5, rtol=1e-5)
    assert torch.equal(standardise(z.bfloat16()), standardise(z.bfloat16().float()))


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1e-20, 1e20, 1e35])
@pytest.mark.parametrize("classes", [1, 2, 100])
def test_a_constant_row_is_0_and_its_gradient_that_of_its_distance_to_its_mean(value, classes):
    z = torch.full((2, classes), value).requires_grad_()
    scores = standardise(z)
    weights = torch.randn(2, classes, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((weights * scores).sum(), z)
    assert (scores.abs() < 1e-20).all()
    torch.testing.assert_close(gradient, weights - weights.mean(1, keepdim=True), atol=1e-5, rtol=1e-5)


def test_logit_std_standardises_both_networks_in_kd_dkd_and_nkd(pair):
    outputs, scores = [Outputs(z) for z in pair], [z_score(z) for z in pair]
    on = ("--logit_std", "on", "--kd_T", 2)
    p, q = softened(scores[1], 2), softened(scores[0], 2)
    assert method("kd", "-a", 9, *on)(*outputs, Labels).item() == pytest.approx(9 * kd(p, q, 2), rel=1e-5)
    expected = DKD()(*scores, Labels.labels, 1.0, 8.0, 2.0).item()
    assert method("dkd", *on)(*outputs, Labels).item() == pytest.approx(expected, rel=1e-5)
    expected = NKDLoss(2.0, 1.5)(*scores, Labels.labels).item()
    assert method("nkd", *on)(*outputs, Labels).item() == pytest.approx(expected, rel=1e-5)
    for name in ("kd", "dkd", "nkd"):
        (gradient,) = torch.autograd.grad(method(name, *on)(*outputs, Labels), pair[0])
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_without_logit_std_nothing_changes_to_the_last_bit(pair):
    outputs = [Outputs(z) for z in pair]
    assert torch.equal(method("kd")(*outputs, Labels), 0.9 * DistillKL(4.0)(*pair))
    assert torch.equal(method("dkd")(*outputs, Labels), DKD()(*pair, Labels.labels, 1.0, 8.0, 4.0))
    assert torch.equal(method("nkd")(*outputs, Labels), NKDLoss(4.0, 1.5)(*pair, Labels.labels))


@pytest.mark.parametrize("name", ["kd", "dkd", "nkd"])
def test_logit_std_is_refused_for_2_classes(name):
    z = logits(1, columns=2).requires_grad_()
    (gradient,) = torch.autograd.grad((standardise(z) * logits(2, columns=2)).sum(), z)
    assert gradient.abs().max() < 1e-5
    with pytest.raises(MethodError, match="2 classes have no gradient: leave it out"):
        method(name, "--logit_std", "on", classes=2)


def test_the_kd_that_a_feature_method_adds_takes_kds_flags():
    options = cli.student_options(["--path_t", "t", "--distill", "hint", "-a", "1", "--kd_T", "2", "--logit_std", "on"])
    assert (options.kd_T, options.logit_std) == (2.0, "on")
