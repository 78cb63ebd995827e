"""bfloat16 and channels_last: what stays in float32, and how close a run stays to the plain one."""
import os

import pytest
import torch

from dataset import Batch
from helper.meters import Meters
from helper.objective import CrossEntropy, Objective
from helper.step import Phase, sgd, train_step
from models import Outputs, model_dict
from models.precision import FLOAT32, Precision
from tests.support import scripts

BF16 = Precision(bf16=True)
LAST = Precision(channels_last=True)


def run_steps(precision, steps=6):
    """The student's losses and state after some steps of cross-entropy."""
    from helper.cli import student_options
    torch.manual_seed(0)
    network = precision.prepare(model_dict["resnet8"](num_classes=10)).train()
    objective = Objective({"ce": CrossEntropy()})
    options = student_options(["--path_t", "t", "--learning_rate", "0.02"])
    phase = Phase("train", network, None, objective, sgd(network.parameters(), options), None, 1, (0, "1"),
                  precision=precision)
    network.train()
    images, labels = torch.randn(steps, 32, 3, 32, 32), torch.arange(32) % 10
    losses = []
    for batch in images:
        meters = Meters(["ce"], torch.device("cpu"))
        train_step(phase, Batch(batch, labels, None, None), Outputs(), meters)
        losses.append(meters.read().loss)
    return losses, network.state_dict()


def test_outputs_are_the_networks_own_in_float32_and_only_those_asked_for():
    network, images = model_dict["resnet8"](num_classes=10).eval(), torch.randn(4, 3, 32, 32)
    out = FLOAT32.outputs(network, images, frozenset({"logits", "stages"}))
    assert torch.equal(out.logits, network(images)) and out.pooled is None and out.preacts == ()
    low = BF16.outputs(network, images, frozenset({"logits", "stages"}))
    assert low.logits.dtype == torch.float32 and all(f.dtype == torch.float32 for f in low.stages)
    assert not torch.equal(low.logits, out.logits)
    torch.testing.assert_close(low.logits, out.logits, rtol=0.05, atol=0.05)


# Compiling takes a minute of a core: TEST_COMPILE=1 python -m pytest tests/models/test_precision.py
COMPILED = pytest.param(Precision(compiled=True), 1e-4, marks=pytest.mark.skipif(
    "TEST_COMPILE" not in os.environ, reason="set TEST_COMPILE=1 to test --compile, which takes a minute"))


@pytest.mark.parametrize("precision, tolerance", [(LAST, 1e-4), (BF16, 0.05), (Precision(True, True), 0.05), COMPILED])
def test_a_short_run_stays_close_to_the_plain_one(precision, tolerance):
    """Relative deviation of the losses and of the weights' norm; bfloat16 has 8 significant bits."""
    losses, state = run_steps(FLOAT32)
    other_losses, other_state = run_steps(precision)
    assert other_losses == pytest.approx(losses, rel=tolerance) and other_losses != losses
    for key, value in state.items():
        other = other_state[key]
        assert other.dtype == value.dtype and other.shape == value.shape
        if value.is_floating_point():
            assert (other - value).norm() <= 2 * tolerance * value.norm().clamp(min=1), key


@pytest.mark.parametrize("units", [True, False])
def test_fast_sets_what_was_measured_best_on_this_device(units, monkeypatch):
    from helper.cli import student_options
    from models.precision import precision_of
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    options = student_options(["--path_t", "t", "--fast"])
    assert precision_of(options, torch.device("cpu")) == Precision(bf16=units, channels_last=True)
    assert options.teacher_cache == "auto"
    # What is given beside it wins.
    assert student_options(["--path_t", "t", "--fast", "--teacher_cache", "off"]).teacher_cache == "off"
    float32 = student_options(["--path_t", "t", "--fast", "--amp", "none"])
    assert precision_of(float32, torch.device("cpu")) == Precision(channels_last=True)
    plain = student_options(["--path_t", "t"])
    assert precision_of(plain, torch.device("cpu")) == FLOAT32 and plain.teacher_cache == "off"


def test_flags_are_carried_out_said_and_leave_a_plain_checkpoint(digits_teacher, tmp_path):
    process = scripts.succeed("train_student.py", "--path_t", digits_teacher, "--dataset", "digits", "--epochs", 1,
                              "--amp", "bf16", "--channels_last", "--warm_up", 0, "--save_dir", tmp_path)
    assert "bfloat16 networks, float32 losses, channels_last" in process.stdout
    state = torch.load(scripts.only(tmp_path / "student_model") / "resnet8_last.pth", weights_only=True)["model"]
    assert all(value.dtype in (torch.float32, torch.int64) for value in state.values())
