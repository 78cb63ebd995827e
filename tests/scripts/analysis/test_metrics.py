"""The statistics of scripts/evaluate.py and analyze.py, against formulas written out sample by sample."""
import math

import pytest
import torch

from scripts.analysis import metrics

LABELS = torch.tensor([0, 2, 0, 2, 2, 1, 0, 2, 1])
CLASSES = 4  # class 3 has no image


@pytest.fixture
def logits():
    return 3 * torch.randn(len(LABELS), CLASSES, generator=torch.Generator().manual_seed(1))


def softmax(row):
    exps = [math.exp(v) for v in row]
    return [e / sum(exps) for e in exps]


def by_class(logits):
    """Of each class with images, its predictions as lists."""
    rows = logits.tolist()
    return [[softmax(z) for z, y in zip(rows, LABELS.tolist(), strict=True) if y == c] for c in range(3)]


def centre_of(predictions):
    return [sum(p[k] for p in predictions) / len(predictions) for k in range(CLASSES)]


def check(result, expected):
    assert result[:3].tolist() == pytest.approx(expected, rel=1e-5) and result[3].isnan()
    assert metrics.mean(result) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_class_accuracy_counts_each_class_apart():
    logits = torch.eye(4)[[0, 2, 1, 2, 0, 1, 0, 3, 1]]
    check(metrics.class_accuracy(logits, LABELS), [100 * 2 / 3, 100.0, 50.0])


def test_superclass_accuracy_tells_the_exact_class_from_one_of_the_same_superclass():
    logits = torch.eye(4)[[0, 2, 1, 2, 0, 1, 0, 3, 1]]
    exact, within = metrics.superclass_accuracy(logits, LABELS, torch.tensor([0, 0, 1, 1]))
    assert exact.tolist() == [80.0, 50.0] and within.tolist() == [100.0, 75.0]


def test_the_spread_is_the_mean_squared_distance_to_the_class_mean(logits):
    check(metrics.within_class_spread(logits, LABELS), [
        sum(sum((p[k] - centre_of(ps)[k]) ** 2 for k in range(CLASSES)) for p in ps) / len(ps)
        for ps in by_class(logits)])


def test_the_kl_within_a_class_is_to_the_mean_prediction(logits):
    check(metrics.within_class_kl(logits, LABELS), [
        sum(p[k] * math.log(p[k] / centre_of(ps)[k]) for p in ps for k in range(CLASSES)) / len(ps)
        for ps in by_class(logits)])


def test_the_kl_within_a_class_stays_finite_for_certain_predictions():
    certain = 2000 * torch.eye(4)[[0, 2, 1, 2, 2, 1, 0, 2, 1]]
    two_to_one = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))  # of class 0 two say 0, one says 1
    check(metrics.within_class_kl(certain, LABELS), [two_to_one, 0.0, 0.0])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_ikds_distance_is_its_loss_by_class(logits, temperature):
    from distiller_zoo.ikd import IKDLoss
    means = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(2))
    result = metrics.ikd_distance(logits, LABELS, means, temperature)
    targets = [softmax((means[c] / temperature).tolist()) for c in range(3)]
    rows = [[softmax((z / temperature).tolist()) for z, y in zip(logits, LABELS, strict=True) if y == c]
            for c in range(3)]
    check(result, [temperature**2 / len(ps) * sum(t[k] * math.log(t[k] / p[k]) for p in ps for k in range(CLASSES))
                   for t, ps in zip(targets, rows, strict=True)])
    assert (result[LABELS]).mean().item() == pytest.approx(IKDLoss(temperature)(logits, means, LABELS).item())


def test_class_means_divide_each_row_by_its_own_count(logits):
    means = metrics.class_means(logits, LABELS, CLASSES)
    for c in range(3):
        assert torch.allclose(means[c], logits[c == LABELS].double().mean(0))
    assert means[3].isnan().all()


def test_nll_is_the_mean_surprise_at_the_label(logits):
    surprises = [-math.log(softmax(z)[y]) for z, y in zip(logits.tolist(), LABELS.tolist(), strict=True)]
    assert metrics.nll(logits, LABELS) == pytest.approx(sum(surprises) / len(surprises), rel=1e-6)


def test_ece_weighs_each_bins_gap_by_its_images():
    # Two classes; confidences 0.95 (3 images, 2 right), 0.79 (1, wrong) and 0.55 (2, right): by hand,
    # with bins of a tenth, 3/6 |2/3 − 0.95| + 1/6 |0 − 0.79| + 2/6 |1 − 0.55|.
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.79, 0.55, 0.55], dtype=torch.float64)
    logits = torch.stack([confidence, 1 - confidence], 1).log()
    labels = torch.tensor([0, 0, 1, 1, 0, 0])
    r = metrics.reliability(logits, labels, bins=10)
    assert r.images.tolist() == [0, 0, 0, 0, 0, 2, 0, 1, 0, 3]  # (0.5, 0.6], (0.7, 0.8], (0.9, 1]
    assert r.confidence[9].item() == pytest.approx(0.95) and r.accuracy[9].item() == pytest.approx(2 / 3)
    expected = 3 / 6 * abs(2 / 3 - 0.95) + 1 / 6 * 0.79 + 2 / 6 * 0.45
    assert metrics.ece(r) == pytest.approx(expected)


def test_ece_is_zero_for_a_calibrated_network_and_one_for_a_sure_and_wrong_one():
    labels = torch.tensor([0, 0, 0, 1])
    calibrated = torch.tensor([[3.0, 1.0]]).log().expand(4, 2)
    assert metrics.ece(metrics.reliability(calibrated, labels)) == pytest.approx(0, abs=1e-7)
    wrong = 100 * torch.eye(2)[1 - labels]
    assert metrics.ece(metrics.reliability(wrong, labels)) == pytest.approx(1)


def test_logit_correlation_is_pearsons(logits):
    import numpy as np
    expected = np.corrcoef(logits.double().numpy(), rowvar=False)
    assert metrics.logit_correlation(logits).numpy() == pytest.approx(expected)
    logits[:, 1] = 5.0
    assert (metrics.logit_correlation(logits)[1] == 0).all()
