"""The losses on logits: golden values and gradients, and the edges where published code breaks."""
import pytest
import torch

from distiller_zoo import (
    DIST,
    DKD,
    CRLDLoss,
    CTKDLoss,
    DistillKL,
    IKDLoss,
    LDRLDLoss,
    MLKDLoss,
    NKDLoss,
    RLDLoss,
    WKDLogitLoss,
    WTTMLoss,
)
from distiller_zoo._logits import standardise
from tests.golden import cases


@pytest.mark.parametrize("T", [1, 4])
def test_kd_equals_golden(T):
    student, teacher, _ = cases.logits()
    cases.check(f"kd_T{T}", DistillKL(T)(student, teacher), student)


@pytest.mark.parametrize("a, b, T", [(1, 8, 4), (1, 2, 4), (0.5, 1, 1)])
def test_dkd_equals_golden(a, b, T):
    student, teacher, labels = cases.logits()
    cases.check(f"dkd_a{a}_b{b}_T{T}", DKD()(student, teacher, labels, a, b, T), student)


@pytest.mark.parametrize("T, gamma", [(1, 1.5), (4, 2)])
def test_nkd_equals_golden(T, gamma):
    student, teacher, labels = cases.logits()
    cases.check(f"nkd_T{T}_g{gamma}", NKDLoss(T, gamma)(student, teacher, labels), student)


@pytest.mark.parametrize("gamma, beta", [(0.3, 1.5), (0.5, 3)])
def test_wttm_equals_golden(gamma, beta):
    student, teacher, _ = cases.logits()
    cases.check(f"wttm_g{gamma}_b{beta}", WTTMLoss()(student, teacher, gamma, beta), student)


@pytest.mark.parametrize("T", [1, 2])
def test_ikd_equals_golden(T):
    student, _, labels = cases.logits()
    means = cases.A("a/class_mean", (100, 100), 4.0)
    cases.check(f"ikd_T{T}", IKDLoss(T)(student, means, labels), student)


EXTREMES = [0.0, 1e-30, 1.0, 30.0, 1e3, 1e4, 1e10, 3e38]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 3, 100])
@pytest.mark.parametrize("T", [1.0, 4.0])
def test_logit_losses_are_finite_for_any_finite_logits(dtype, classes, T):
    """Users' reports: NaN or inf of the published DKD for confident teachers and for 2 classes."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(8) % classes
    wkd = WKDLogitLoss(1 - torch.eye(classes), T)
    for scale_s in EXTREMES:
        for scale_t in EXTREMES:
            student = (scale_s * (2 * torch.rand(8, classes, generator=generator) - 1)).to(dtype).requires_grad_()
            teacher = (scale_t * (2 * torch.rand(8, classes, generator=generator) - 1)).to(dtype)
            losses = [DistillKL(T)(student, teacher), DKD()(student, teacher, labels, 1.0, 8.0, T),
                      NKDLoss(T, 1.5)(student, teacher, labels), WTTMLoss()(student, teacher, 0.3, 1.5),
                      IKDLoss(T)(student, teacher[:1].expand(classes, -1), labels),
                      DIST(tau=T)(student, teacher), MLKDLoss(T)(student, teacher), CTKDLoss()(student, teacher),
                      DistillKL(T)(standardise(student), standardise(teacher)),
                      RLDLoss(T=T, tau=T)(student, teacher, labels), wkd.distance(student, teacher, labels),
                      wkd.target(student, teacher, labels), CRLDLoss(T=T)(student, student, teacher, teacher)]
            if classes > 2:
                losses.append(LDRLDLoss(T=T, k=2)(student, teacher))
            for loss in losses:
                (gradient,) = torch.autograd.grad(loss, student)
                assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()


def test_dkd_of_two_classes_is_the_binary_kl_alone():
    """With 2 classes the only other class has probability 1 in both networks: NCKD is 0, TCKD is KD."""
    student, teacher = torch.randn(8, 2), torch.randn(8, 2)
    labels = torch.arange(8) % 2
    assert DKD()(student, teacher, labels, 0.0, 8.0, 4.0).item() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(DKD()(student, teacher, labels, 1.0, 8.0, 4.0), DistillKL(4.0)(student, teacher))


def test_bfloat16_logits_are_raised_to_float32_before_anything_else():
    student, teacher, labels = (x.detach() for x in cases.logits())
    student, teacher = student.bfloat16(), teacher.bfloat16()
    assert torch.equal(DKD()(student, teacher, labels, 1, 8, 4),
                       DKD()(student.float(), teacher.float(), labels, 1, 8, 4))
