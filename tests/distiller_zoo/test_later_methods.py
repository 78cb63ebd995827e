"""The methods beyond the published code, against their formulas in NumPy's float64, and their edges."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distiller_zoo import DIST, METHODS, CTKDLoss, DistillKL, MethodError, Setup, cka_cost
from helper import cli
from helper.objective import CrossEntropy, student_objective
from models import Outputs
from tests.support.terms import BATCH, CLASSES, REVIEWED, Labels, kd, logits, method, softened

# DIST


def correlation(a, b):
    return np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize("beta, gamma, T", [(2, 2, 4), (1, 3, 1)])
def test_dist_is_one_minus_pearsons_correlation_of_rows_and_columns(pair, beta, gamma, T):
    q, p = (softened(z, T) for z in pair)
    expected = T**2 * (beta * (1 - correlation(q, p)) + gamma * (1 - correlation(q.T, p.T)))
    assert DIST(beta, gamma, T)(*pair).item() == pytest.approx(expected, rel=1e-5)


def test_dist_of_the_same_logits_is_0_and_of_its_method_the_weighted_sum(pair):
    assert DIST()(pair[0], pair[0]).item() == pytest.approx(0, abs=1e-4)
    outputs = [Outputs(z) for z in pair]
    assert method("dist", "-b", 3, "--dist_T", 2)(*outputs, None).item() == pytest.approx(DIST(3, 3, 2)(*pair).item())


def test_dists_rows_and_columns_without_variance_count_as_uncorrelated():
    student, teacher = logits(1), logits(2)
    teacher[:, 0] = -1e30  # a class that no image resembles: a column of zeros
    student[2] = 0.0
    student.requires_grad_()
    q, p = softened(student, 4), softened(teacher, 4)
    rows = [0 if i == 2 else np.corrcoef(q[i], p[i])[0, 1] for i in range(BATCH)]
    columns = [0 if k == 0 else np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(CLASSES)]
    loss = DIST(1, 1, 4)(student, teacher)
    assert loss.item() == pytest.approx(16 * (2 - np.mean(rows) - np.mean(columns)), rel=1e-5)
    assert DIST(1, 1, 4)(teacher, student).item() == pytest.approx(loss.item())
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()


def test_dist_of_a_single_image_has_its_row_alone():
    student, teacher = logits(1, 1).requires_grad_(), logits(2, 1)
    loss = DIST(1, 1, 1)(student, teacher)
    expected = 2 - correlation(softened(student, 1), softened(teacher, 1))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


# MLKD and CRLD


def views():
    """A batch's outputs for the student and the teacher, with the second view's logits."""
    return [Outputs(logits(seed), strong=logits(seed + 10)) for seed in (1, 2)]


def test_mlkds_parts_are_weighted_by_the_shares_that_the_teacher_is_least_sure_of():
    student, teacher = views()
    p = softened(teacher.logits, 1)
    h, h_classes = (np.mean(c <= np.median(c)) for c in (p.max(1), p.sum(0)))
    expected = 0.0
    for i, T in enumerate((4, 3, 5, 2, 6)):
        q, p = (softened(z, T) for z in (student.logits, teacher.logits))
        q_s, p_s = (softened(z, T) for z in (student.strong, teacher.strong))
        expected += h * kd(p, q, T) + (kd(p_s, q_s, T) if i < 3 else kd(p, q, T))
        expected += h * sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for i in range(BATCH) for j in range(BATCH)) / BATCH
        expected += h_classes * sum((p[:, i] @ p[:, j] - q[:, i] @ q[:, j]) ** 2
                                    for i in range(CLASSES) for j in range(CLASSES)) / CLASSES
    assert method("mlkd", "-b", 2)(student, teacher, None).item() == pytest.approx(2 * expected, rel=1e-5)


def test_which_views_a_method_reads():
    for two in (method("mlkd"), method("crld"), method("kd", "--second_view", "on")):
        assert two.reads == {"logits", "strong"}
    assert method("mlkd", "--mlkd_views", 1).reads == method("kd").reads == {"logits"}
    student, teacher = views()
    one = method("mlkd", "--mlkd_views", 1)(Outputs(student.logits), Outputs(teacher.logits), None)
    assert one.isfinite() and one < method("mlkd")(student, teacher, None)


def test_kd_of_two_views_is_the_sum_and_so_is_the_cross_entropy():
    student, teacher = views()
    assert method("kd", "--second_view", "on")(student, teacher, None).item() == pytest.approx(
        0.9 * (DistillKL(4.0)(student.logits, teacher.logits) + DistillKL(4.0)(student.strong, teacher.strong)).item())
    ce = CrossEntropy(2.0, strong=True)(student, teacher, Labels)
    assert ce.item() == pytest.approx(2 * sum(F.cross_entropy(z, Labels.labels).item()
                                              for z in (student.logits, student.strong)))


def test_crlds_masks_come_from_the_teachers_confidence():
    student, teacher = views()
    sure, sure_strong = (softened(z, 1).max(1) >= least for z, least in ((teacher.logits, 0.6), (teacher.strong, 0.5)))

    def row(s, t):
        p, q = softened(t, 4), softened(s, 4)
        return 16 * (p * (np.log(p) - np.log(q))).sum(1)

    within = sure * (row(student.logits, teacher.logits) + row(student.strong, teacher.strong))
    cross = sure_strong * (row(student.strong, teacher.logits) + row(student.logits, teacher.strong))
    assert 0 < sure.sum() < BATCH and 0 < sure_strong.sum() < BATCH
    loss = method("crld", "-b", 3, "-a", 2, "--crld_weak", 0.6, "--crld_strong", 0.5)(student, teacher, None)
    assert loss.item() == pytest.approx((3 * within + 2 * cross).mean(), rel=1e-5)


# WKD


def test_cka_is_1_of_the_same_features_and_0_of_unrelated_ones_and_pairs_images_in_order():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(6, 4, generator=generator)
    other = torch.zeros(6, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    features = torch.cat([one, one @ rotation + 3, other, one[:5]])
    labels = torch.tensor([0] * 6 + [1] * 6 + [2] * 6 + [3] * 5)
    expected = torch.tensor([[0.0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]])
    # Rotated and shifted features are the same; the smallest class counts.
    torch.testing.assert_close(cka_cost(features, labels, 4), expected, atol=1e-5, rtol=0)
    with pytest.raises(MethodError, match="two images or more of each: give --wkd_cost fc"):
        cka_cost(one, torch.tensor([0, 0, 0, 0, 0, 1]), 2)


def test_wkds_weights_fall_along_half_a_cosine_and_its_label_term_does_not():
    student, teacher = (Outputs(z) for z in (logits(1), logits(2)))
    setup = Setup(student, teacher, "S", "T", torch.arange(60) % CLASSES, CLASSES, torch.randn(CLASSES, 5))
    options = cli.student_options(["--path_t", "t", "--distill", "wkd", "--wkd_cost", "fc", "-a", "10"])
    term = METHODS["wkd"](setup, options)
    values = {}
    for epoch in (1, 150, 195, 240):
        term.start_epoch(epoch, None)
        values[epoch] = term(student, teacher, Labels).item()
    label = term.logits.target(student.logits, teacher.logits, Labels.labels).item()
    assert values[1] == values[150] > values[195] > values[240]
    assert values[240] == pytest.approx(label)
    assert values[195] - label == pytest.approx((values[1] - label) / 2, rel=1e-4)


@pytest.mark.parametrize("flags, message", [
    (("--wkd", "l", "-b", 1), "no use for -b"), (("--wkd", "f", "-a", 1), "no use for -a"),
    (("--wkd", "f", "--wkd_grid", 3), "must be equal and larger than a pixel"),
    (("--wkd", "f", "--wkd_grid", 8), "must be equal and larger than a pixel")])
def test_wkd_refuses_what_it_cannot_compute(flags, message):
    with pytest.raises(MethodError, match=message):
        method("wkd", *flags, student=REVIEWED[0], teacher=REVIEWED[1])


# CTKD


def ctkd(theta, pair, start=1.0, span=20.0):
    T = start + span / (1 + math.exp(-theta))
    return kd(softened(pair[1], T), softened(pair[0], T), T)


def test_ctkd_starts_at_the_published_temperature(pair):
    assert CTKDLoss()(*pair).item() == pytest.approx(ctkd(1.0, pair), rel=1e-5)
    term = method("ctkd", "-a", 0.5, "--ctkd_start", 2, "--ctkd_range", 3)
    assert term(*map(Outputs, pair), None).item() == pytest.approx(0.5 * ctkd(1.0, pair, 2.0, 3.0), rel=1e-5)


@pytest.mark.parametrize("epoch", [1, 5, 10, 200])
def test_ctkds_temperature_climbs_the_loss_as_far_as_the_curriculum_lets_it(pair, epoch):
    term = method("ctkd", "-a", 1)
    term.start_epoch(epoch, None)
    term(*map(Outputs, pair), None).backward()
    published = (math.cos(min(epoch, 10) * math.pi / 10) + 1) / 2 - 1  # what multiplies the gradient
    slope = (ctkd(1 + 1e-4, pair) - ctkd(1 - 1e-4, pair)) / 2e-4
    assert term.loss.theta.grad.item() == pytest.approx(published * slope, rel=1e-3)
    (plain,) = torch.autograd.grad(DistillKL(term.loss.temperature().item())(*pair), pair[0])
    torch.testing.assert_close(pair[0].grad, plain)


def test_ctkds_temperature_is_trained_and_continues_from_a_state_dict(pair):
    def train(term, steps):
        sgd = torch.optim.SGD(term.parameters(), lr=0.1)
        term.start_epoch(10, None)
        for _ in range(steps):
            sgd.zero_grad()
            term(*map(Outputs, pair), None).backward()
            sgd.step()
        return term.loss.temperature().item()

    whole, first, second = method("ctkd"), method("ctkd"), method("ctkd")
    started, ended = whole.loss.temperature().item(), train(whole, 6)
    assert whole(*map(Outputs, pair), None) > method("ctkd")(*map(Outputs, pair), None) and ended != started
    train(first, 3)
    second.load_state_dict(first.state_dict())
    assert train(second, 3) == ended


@pytest.mark.parametrize("name, flags, expected", [
    ("reviewkd", (), [0, 0.5, 0.95, 1]), ("rld", (), [0.05, 0.55, 1, 1]), ("sdd", (), [0.05, 0.55, 1, 1]),
    ("sdd", ("--sdd", "kd"), [1, 1, 1, 1]), ("kd", (), [1, 1, 1, 1]), ("dkd", ("--ramp", 40), [0.025, 0.275, 0.5, 1])])
def test_a_methods_weight_grows_as_published_or_as_asked(name, flags, expected):
    def with_cam(outputs):
        return outputs._replace(cam=torch.randn(4, CLASSES, 4, 4, generator=torch.Generator().manual_seed(3)))

    student, teacher = map(with_cam, REVIEWED)
    options = cli.student_options(["--path_t", "t", "--distill", name, *map(str, flags)])
    setup = Setup(student, teacher, "S", "T", torch.arange(60) % CLASSES, CLASSES)
    objective = student_objective(METHODS[name](setup, options), setup, options)

    class Four:
        labels, whole, size = torch.arange(4), None, 4

    values = []
    for epoch in (1, 11, 20, 240):
        objective.start_epoch(epoch, torch.Generator())
        values.append(objective(student, teacher, Four)[name].item())
    assert [value / values[-1] for value in values] == pytest.approx(expected, rel=1e-5)


def test_a_first_stage_has_no_ramp():
    with pytest.raises(MethodError, match="fsp has no use for --ramp: its loss is that of a first stage"):
        cli.student_options(["--path_t", "t", "--distill", "fsp", "--ramp", "3"])


# A step may be captured in a CUDA graph, so no term may read a value back: tensors without values show it.


@pytest.mark.parametrize("name, flags", [
    *[(name, ()) for name in ("dist", "mlkd", "crld", "ctkd", "reviewkd", "rld", "ldrld", "sdd", "catkd", "norm")],
    ("wkd", ("--wkd", "f")),
    *[(name, ("--logit_std", "on")) for name in ("kd", "dkd", "nkd")]])
def test_no_value_is_read_back_from_the_device(name, flags):
    def on_meta(value):
        return tuple(map(on_meta, value)) if isinstance(value, tuple) else value.to("meta")

    more = {"strong": logits(5, 4), "cam": torch.randn(4, CLASSES, 4, 4)}
    student, teacher = (outputs._replace(**more) for outputs in REVIEWED)
    flags = (*flags, "--ldrld_k", 3) if name == "ldrld" else flags
    term = method(name, *flags, student=student, teacher=teacher).to("meta")
    term.start_epoch(2, None)
    batch = Labels()
    batch.labels = torch.zeros(4, dtype=torch.int64, device="meta")
    outputs = [Outputs(**{name: on_meta(value) for name, value in out._asdict().items() if value is not None})
               for out in (student, teacher)]
    loss = term(*outputs, batch)
    assert loss.shape == () and loss.device.type == "meta"
