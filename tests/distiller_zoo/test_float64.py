"""Thirty steps in float64 of each method, its first stage too, with students beside ResNets: all stays finite."""
import pytest
import torch

from dataset import Batch
from distiller_zoo import METHODS, Setup
from helper import cli
from helper.objective import Objective, student_objective
from helper.step import set_learning_rate, sgd
from models import model_dict

CLASSES, BATCH, STEPS, SAMPLES = 10, 4, 30, 40
SMALL = {"crd": ["--nce_k", "32"], "crld": ["--crld_weak", "0"], "wkd": ["--wkd", "lf"]}


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    """Float64 everywhere, also where a loss asks for float32 whatever comes in."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def outputs(network, batch, fields):
    found = network(batch.images, named=True, cam="cam" in fields)
    return found._replace(strong=network(batch.strong)) if "strong" in fields else found


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images, strong = torch.randn(2, BATCH, 3, 32, 32, generator=generator)
        index = torch.randperm(SAMPLES, generator=generator)[:BATCH]
        yield Batch(images, index % CLASSES, index, None, strong=strong)


def train(objective, trained, student, teacher, options, rate=None):
    """STEPS steps; every loss and every trained parameter is looked at."""
    optimizer = sgd(trained, options)
    set_learning_rate(optimizer, rate or options.learning_rate)
    student.train()
    objective.train()
    objective.start_epoch(2, torch.Generator().manual_seed(0))
    fields = objective.reads | {"logits"}
    for step, batch in enumerate(batches()):
        with torch.no_grad():
            of_teacher = outputs(teacher, batch, fields)
        losses = objective(outputs(student, batch, fields), of_teacher, batch)
        assert all(loss.dtype == torch.float64 and loss.isfinite() for loss in losses.values()), (step, losses)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in trained)
    assert all(value.isfinite().all() for module in (student, objective) for value in module.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("network", ["wrn_16_1", "ShuffleV2", "MobileNetV2"])
@pytest.mark.parametrize("name", METHODS)
def test_thirty_steps_stay_finite(name, network):
    """The teacher is of the student's architecture, which every method serves."""
    torch.manual_seed(0)
    student, teacher = (model_dict[network](num_classes=CLASSES) for _ in range(2))
    teacher.eval().requires_grad_(False)
    options = cli.student_options(["--path_t", "t", "--model_s", network, "--distill", name, *SMALL.get(name, [])])
    with torch.no_grad():
        out_s, out_t = (model.eval()(torch.randn(2, 3, 32, 32), named=True, cam=True) for model in (student, teacher))
    setup = Setup(out_s, out_t, student.name, teacher.name, torch.arange(SAMPLES) % CLASSES, CLASSES,
                  teacher.classifier_layer().weight.detach(), lambda name, compute: 1 - torch.eye(CLASSES))
    method = METHODS[name](setup, options)
    stage = method.stage(student)
    if stage is not None:
        trained = [p for module in stage.modules for p in module.requires_grad_(True).parameters()]
        trained += list(student.feature_parameters()) if stage.trains_features else []
        train(Objective({stage.name: stage.term}), trained, student, teacher, options,
              stage.learning_rate(network, options.learning_rate))
        for module in stage.modules:
            module.requires_grad_(False)
    objective = student_objective(method, setup, options)
    trained = [*student.parameters(), *(p for p in objective.parameters() if p.requires_grad)]
    train(objective, trained, student, teacher, options)
