"""Whole training runs of the published implementation, reproduced by this loop and these terms."""
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dataset
from distiller_zoo import METHODS, Setup
from helper import cli
from helper.loop import fit
from helper.objective import student_objective
from helper.record.run import RunRecord
from helper.schedule import schedule
from helper.step import Phase, sgd
from helper.teacher.loader import DistillLoader
from helper.teacher.source import LiveTeacher
from models import model_dict
from tests.golden import recipe

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "trajectories.json").read_text())


class RecipeBatches:
    """The golden batches, the same in every epoch, in the place of a data set's views."""

    def __init__(self, seed, **sizes):
        self.fixed = [dataset.Batch(*batch, view=None) for batch in recipe.trajectory_batches(seed, **sizes)]
        self.labels = torch.cat([batch.labels for batch in self.fixed])

    def __len__(self):
        return len(self.labels)

    def plan(self, *purpose):
        return None

    def batches(self, plan, batch_size):
        yield from self.fixed


@pytest.mark.parametrize("name", GOLDEN)
def test_run_equals_golden(name, tmp_path):
    golden = GOLDEN[name]
    options = cli.student_options(
        f"--path_t none --distill {golden['distill']} --model_s {golden['student']} -r {golden['gamma']} "
        f"-a {golden['alpha']} -b {golden['beta']} --avg {golden['avg']} --intra_T {golden['intra_T']} "
        f"--kd_T {golden['kd_T']} --epochs {golden['epochs']} --batch_size {golden['batch_size']} "
        f"--learning_rate {golden['lr']} --wram_up {golden['warmup']} --save_dir {tmp_path} --device cpu".split())
    student, teacher = (model_dict[golden[network]](num_classes=100) for network in ("student", "teacher"))
    for network in (student, teacher):
        network.load_state_dict(recipe.fill(network.state_dict()))
    views = RecipeBatches(golden["data_seed"], n_batches=golden["batches"], batch_size=golden["batch_size"])
    digits = dataset.load("digits", "")
    with torch.no_grad():
        out_s, out_t = (network.eval()(torch.zeros(2, 3, 32, 32), named=True) for network in (student, teacher))
    setup = Setup(out_s, out_t, student.name, teacher.name, views.labels, 100)
    objective = student_objective(METHODS[options.distill](setup, options), setup, options)
    loader = DistillLoader(views, LiveTeacher(teacher, objective.reads), options.batch_size)
    phase = Phase("train", student, loader, objective, sgd([*student.parameters(), *objective.parameters()], options),
                  schedule(options), options.epochs, (0, "1"), {"student": student, "objective": objective})
    run = RunRecord(options, ("students", "scalars"), "golden", student, 10, {})
    run.start({}, {}, [])
    fit(phase, digits.test_images(torch.device("cpu")), run)

    assert [line["learning_rate"] for line in run.lines] == pytest.approx(golden["lrs"], rel=1e-6)
    assert [line["loss"] for line in run.lines] == pytest.approx(golden["epoch_mean_loss"], rel=1e-3)
    norms = {key: value.float().norm().item() for key, value in student.state_dict().items()}
    for key, norm in golden["final_weight_norms"].items():
        assert norms[key] == pytest.approx(norm, rel=1e-3), key
    if golden["avg"]:
        means = objective.terms["ikd"].means
        for row, norm in golden["class_mean_rows_norm"].items():
            assert means[int(row)].norm().item() == pytest.approx(norm, rel=1e-3)
    student.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(student(batch.images), batch.labels) for batch in views.fixed]
    assert torch.stack(losses).mean().item() == pytest.approx(golden["eval_loss"], rel=1e-3)
