"""The IKD term: when it acts, what its class means are, and where the published formula goes wrong."""
import pytest
import torch
import torch.nn.functional as F

from dataset import Batch
from distiller_zoo import METHODS, Setup
from distiller_zoo.ikd import IKD, ClassMeans, IKDLoss, smoothed_labels
from helper.cli import student_options
from helper.objective import student_objective
from models import Outputs

CLASSES = 5


def batches(counts, batch_size=7, seed=0):
    """Batches of random logits with counts[c] samples of class c."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    teacher = 3 * torch.randn(len(labels), CLASSES, generator=generator)
    student = torch.randn(len(labels), CLASSES, generator=generator)
    return [(Outputs(student[i : i + batch_size]), Outputs(teacher[i : i + batch_size]),
             Batch(None, labels[i : i + batch_size], None, None)) for i in range(0, len(labels), batch_size)]


def run_epoch(term, epoch, data):
    term.start_epoch(epoch, torch.Generator())
    losses = [term(*batch) for batch in data]
    term.end_epoch(epoch)
    return torch.stack(losses)


def naive_means(data):
    """The definition, sample by sample."""
    rows = {c: [] for c in range(CLASSES)}
    for _, teacher, batch in data:
        for z, y in zip(teacher.logits, batch.labels.tolist(), strict=True):
            rows[y].append(z)
    return {c: torch.stack(z).mean(0) for c, z in rows.items() if z}


def test_silent_in_epoch_1_then_fixed_means():
    data = batches([6, 6, 6, 6, 6])
    term = IKD(CLASSES, temperature=2.0, weight=6.5)
    assert (run_epoch(term, 1, data) == 0).all()
    means = term.means.clone()
    for c, mean in naive_means(data).items():
        torch.testing.assert_close(means[c], mean)
    second = run_epoch(term, 2, batches([6, 6, 6, 6, 6], seed=1))
    assert (second > 0).all() and torch.equal(term.means, means)


def test_value_is_the_definition():
    data = batches([3, 4, 9, 2, 5])
    term = IKD(CLASSES, temperature=1.5, weight=6.5)
    run_epoch(term, 1, data)
    means = naive_means(data)
    for (student, _, batch), loss in zip(data, run_epoch(term, 2, data), strict=True):
        expected = torch.stack([
            F.kl_div((z / 1.5).log_softmax(0), (means[y] / 1.5).softmax(0), reduction="sum")
            for z, y in zip(student.logits, batch.labels.tolist(), strict=True)]).mean()
        assert loss.item() == pytest.approx(6.5 * 1.5**2 * expected.item(), rel=1e-5)


def test_unequal_counts_where_the_published_formula_goes_wrong():
    """Columns divided by the counts, as published, agree with the means for equal counts alone."""
    for counts, equal in [([6, 6, 6, 6, 6], True), ([1, 2, 4, 8, 16], False)]:
        data = batches(counts)
        term = IKD(CLASSES, 2.0, 1.0)
        run_epoch(term, 1, data)
        published = (term.collected.sums / term.collected.counts).float()
        assert torch.allclose(term.means, published) == equal
        for c, mean in naive_means(data).items():
            torch.testing.assert_close(term.means[c], mean)


def test_it_can_be_the_only_term():
    term = IKD(CLASSES, 2.0, 1.0)
    for epoch in (1, 2):
        logits = torch.randn(4, CLASSES, requires_grad=True)
        term.start_epoch(epoch, torch.Generator())
        loss = term(Outputs(logits), Outputs(torch.randn(4, CLASSES)), Batch(None, torch.arange(4), None, None))
        loss.backward()
        assert (logits.grad == 0).all() == (epoch == 1)
        term.end_epoch(epoch)


def test_an_unseen_class_contributes_nothing_and_no_nan():
    data = batches([6, 6, 0, 6, 6])
    term = IKD(CLASSES, 2.0, 1.0)
    run_epoch(term, 1, data)
    assert term.means.isfinite().all() and (term.collected.sums / term.collected.counts).isnan().any()
    logits = torch.randn(4, CLASSES, requires_grad=True)
    term.start_epoch(2, torch.Generator())
    loss = term(Outputs(logits), Outputs(), Batch(None, torch.tensor([2, 0, 2, 1]), None, None))
    loss.backward()
    assert loss > 0 and (logits.grad[[0, 2]] == 0).all() and (logits.grad[[1, 3]] != 0).any()


def test_its_state_continues_from_a_state_dict():
    data = batches([2, 4, 4, 4, 4])
    term, again = IKD(CLASSES, 2.0, 1.0), IKD(CLASSES, 2.0, 1.0)
    run_epoch(term, 1, data)
    again.load_state_dict(term.state_dict())
    assert torch.equal(run_epoch(term, 2, data), run_epoch(again, 2, data))


def test_it_never_waits_for_the_device_and_has_no_loop_over_samples():
    """On the meta device any look at a value (item, bool, a Python loop over samples) raises."""
    with torch.device("meta"):
        term = IKD(CLASSES, 2.0, 1.0)
        student, teacher = Outputs(torch.randn(8, CLASSES)), Outputs(torch.randn(8, CLASSES))
        batch = Batch(None, torch.zeros(8, dtype=torch.int64), None, None)
        for epoch in (1, 2):
            term.collecting = epoch == 1
            assert term(student, teacher, batch).shape == ()


def test_smoothed_labels_are_the_target_in_the_place_of_class_means():
    """softmax(m_c/T) = (1 − s)·one-hot + s/C, whatever T; IKD then pulls to it from epoch 2 as to class means."""
    target = (smoothed_labels(5, 3.0) / 3.0).softmax(1)
    torch.testing.assert_close(target, 0.9 * torch.eye(5).double() + 0.02)
    options = student_options(["--path_t", "t", "--avg", "2", "--intra_T", "3", "--ikd_means", "smooth", "-a", "0"])
    out = Outputs(logits=torch.randn(4, 5))
    setup = Setup(out, out, "s", "t", torch.arange(4), 5)
    objective = student_objective(METHODS["kd"](setup, options), setup, options)
    batch = Batch(None, torch.tensor([0, 1, 2, 2]), None, None)
    for epoch in (1, 2):
        objective.start_epoch(epoch, torch.Generator())
        loss = objective(out, out, batch)["ikd"]
        assert (loss == 0) == (epoch == 1)
        objective.end_epoch(epoch)
    log_p = (out.logits / 3).log_softmax(1)
    kl = (target[batch.labels] * (target[batch.labels].log() - log_p)).sum(1).mean()
    assert loss.item() == pytest.approx(2 * 9 * kl.item(), rel=1e-5)


def test_class_means_of_a_loader_are_those_of_all_its_samples():
    torch.manual_seed(0)
    teacher = torch.nn.Linear(6, 4).train()
    images, labels = torch.randn(50, 6), torch.arange(50) % 3
    loader = list(zip(images.split(8), labels.split(8), strict=True))
    means = ClassMeans(4).collect(teacher, loader)
    logits = teacher(images)
    for label in range(3):
        torch.testing.assert_close(means[label], logits[labels == label].mean(0))
    assert not means[3].any() and teacher.training
    with pytest.raises(ValueError, match="'mean' or 'none'"):
        IKDLoss(2.0, "sum")
