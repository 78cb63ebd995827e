"""The pieces of the loop: schedule, meters, evaluation, streams, the step."""
import dataclasses
import math
import signal
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

import dataset
from distiller_zoo import Term
from helper.cli import student_options
from helper.evaluation import evaluate
from helper.loop import fit
from helper.meters import Meters
from helper.objective import CrossEntropy, Objective
from helper.record.run import RunRecord
from helper.schedule import schedule
from helper.step import Phase, sgd
from helper.teacher.loader import DistillLoader
from helper.teacher.source import NoTeacher
from helper.util.errors import RunError
from helper.util.seeding import derive_seed
from models import model_dict


def learning_rate(epoch, warm_up=0):
    return schedule(Namespace(learning_rate=0.05, lr_decay_epochs=[150, 180, 210], lr_decay_rate=0.1,
                              warm_up=warm_up))(epoch)


@pytest.mark.parametrize("epoch, rate", [(1, 0.05), (150, 0.05), (151, 0.005), (180, 0.005), (181, 5e-4),
                                         (210, 5e-4), (211, 5e-5), (240, 5e-5)])
def test_the_learning_rate_decays_after_its_epochs(epoch, rate):
    assert learning_rate(epoch) == pytest.approx(rate)


@pytest.mark.parametrize("epoch, rate", [(1, 0.0025), (2, 0.005), (19, 0.0475), (20, 0.05), (21, 0.05), (151, 0.005)])
def test_warm_up_ends_at_the_full_learning_rate(epoch, rate):
    assert learning_rate(epoch, warm_up=20) == pytest.approx(rate)


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warm_up_at_all(warmup):
    assert learning_rate(1, warmup) == 0.05


def test_meters_average_over_samples_not_steps():
    meters = Meters(["ce", "kd"], torch.device("cpu"))
    logits = torch.eye(10)[:4]
    one, two, four, zero = (torch.tensor(x) for x in (1.0, 2.0, 4.0, 0.0))
    meters.update({"ce": one, "kd": two}, one + two, logits, torch.tensor([0, 1, 2, 9]))
    meters.update({"ce": four, "kd": zero}, four, logits[:1], torch.tensor([9]))
    averages = meters.read()
    assert averages.losses == {"ce": pytest.approx((4 * 1 + 4) / 5), "kd": pytest.approx(8 / 5)}
    assert averages.loss == pytest.approx(16 / 5) and averages.top1 == pytest.approx(60)


def test_top5_counts_a_label_among_the_five_largest():
    logits = torch.arange(10.0).flip(0).expand(10, 10)
    meters = Meters(["ce"], torch.device("cpu"))
    meters.update({"ce": torch.tensor(0.0)}, torch.tensor(0.0), logits, torch.arange(10))
    assert (meters.read().top1, meters.read().top5) == (10, 50)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_term_and_step(bad):
    meters = Meters(["ce", "kd"], torch.device("cpu"))
    for step in range(1, 5):
        kd = torch.tensor(bad if step >= 3 else 1.0)
        meters.update({"ce": torch.tensor(1.0), "kd": kd}, 1 + kd, None, torch.zeros(2))
    with pytest.raises(RunError, match="'kd' is not finite at step 3"):
        meters.read()


def test_meters_never_wait_for_the_device():
    """On the meta device any look at a value raises."""
    with torch.device("meta"):
        meters, loss = Meters(["ce"], torch.device("meta")), torch.zeros(())
        meters.update({"ce": loss}, loss, torch.zeros(8, 10), torch.zeros(8, dtype=torch.int64))


def test_evaluation_equals_the_network_on_all_images_at_once_and_leaves_the_mode():
    data = dataset.load("digits", "")
    network = model_dict["resnet8"](num_classes=10).train()
    test = data.test_images(torch.device("cpu"))
    result = evaluate(network, test, batch_size=100)
    assert network.training
    network.eval()
    with torch.no_grad():
        ((images, labels),) = test.batches(len(test))
        logits = network(images)
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert result.top1 == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    among = (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item()
    assert result.top5 == pytest.approx(100 * among)


def test_streams_of_neighbours_are_unrelated_and_stable():
    seeds = {derive_seed(s, t, "train", e) for s in range(4) for t in ("1", "2") for e in range(50)}
    assert len(seeds) == 400
    assert derive_seed(0, "1", "init") == derive_seed(0, 1, "init") == 6615252530199906622


def test_sgd_has_momentum_and_decays_every_parameter():
    """v = μ·v + (g + λ·p), p = p − learning_rate·v; for batch norm and biases too."""
    network = model_dict["resnet8"](num_classes=10)
    options = student_options(["--path_t", "t"])
    optimizer = sgd(network.parameters(), options)
    before = [p.detach().clone() for p in network.parameters()]
    velocity = [torch.zeros_like(p) for p in before]
    for step in (1, 2):
        for p in network.parameters():
            p.grad = torch.full_like(p, 0.1 * step)
        optimizer.step()
        velocity = [0.9 * v + 0.1 * step + 5e-4 * p for v, p in zip(velocity, before, strict=True)]
        before = [p - 0.05 * v for p, v in zip(before, velocity, strict=True)]
    for p, expected in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), expected)


class Draws(Term):
    """A term that only keeps what it draws at the start of each epoch."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def start_epoch(self, epoch, generator):
        self.drawn.append(torch.rand(4, generator=generator).tolist())

    def forward(self, student, teacher, batch):
        return 0.0 * student.logits.sum()


def drawn_in_two_epochs(folder, trial, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's own handlers stay
    digits = dataset.load("digits", "")
    few = dataset.Split(digits.train.images[:32], digits.train.labels[:32])
    data = dataclasses.replace(digits, train=few, test=few)
    options = student_options(["--path_t", "t", "--epochs", "2", "--trial", trial, "--save_dir", str(folder)])
    network, term, cpu = model_dict["resnet8"](num_classes=10), Draws(), torch.device("cpu")
    objective = Objective({"ce": CrossEntropy(), "draws": term})
    loader = DistillLoader(data.train_views(cpu), NoTeacher(), options.batch_size)
    phase = Phase("train", network, loader, objective, sgd(network.parameters(), options), schedule(options), 2,
                  (0, trial), {"student": network, "objective": objective})
    run = RunRecord(options, ("students", "scalars"), trial, network, 10, {})
    run.start({}, {}, [])
    fit(phase, data.test_images(cpu), run)
    run.folder.lock.close()
    return term.drawn


def test_a_term_draws_by_trial_and_epoch_alone(tmp_path, monkeypatch):
    first, again, other = (drawn_in_two_epochs(tmp_path / name, trial, monkeypatch)
                           for name, trial in [("a", "1"), ("b", "1"), ("c", "2")])
    assert first == again and first[0] != first[1]
    assert all(x != y for x in first for y in other)
