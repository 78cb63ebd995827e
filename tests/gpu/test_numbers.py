"""What a CUDA device computes, held against the CPU, and each way to be faster against plain float32."""
import pytest
import torch

from distiller_zoo import METHODS
from helper.step import choose_step
from tests.support.on_gpu import CPU, needs_gpu, phases_of, train

pytestmark = [*needs_gpu, pytest.mark.usefixtures("tf32_off")]
IKD = ("--avg", "2")


def held(phase):
    """All tensors that a step of the phase changes, by name: those of its modules, and the optimizer's."""
    tensors = {f"{name}.{key}": value for name, module in phase.modules.items()
               for key, value in module.state_dict().items()}
    parameters = (p for group in phase.optimizer.param_groups for p in group["params"])
    for i, parameter in enumerate(parameters):
        for key, value in phase.optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                tensors[f"{i}.{key}"] = value
    return tensors


def student_of(phase):
    return torch.cat([p.detach().cpu().double().flatten() for p in phase.student.parameters()])


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_are_those_of_the_cpu(method):
    """Each begins where the CPU's began, since rounding alone, which differs in the order of sums, makes two trainings
    diverge: by a percent after twenty steps, on one CPU too. What one step's rounding does is far less than is allowed
    here: it moves the losses by some 1e-5, small ones by 1e-3, and an update by 1e-4 to 1e-3 of its length, where
    activations are near zero. In a first stage too.
    """
    # crd draws other negatives on each device, unless it takes all images of other classes.
    flags = ("--distill", method, *IKD, "--epochs", "7", *(["--nce_k", "36"] if method == "crd" else []))
    for phases in zip(phases_of(flags), phases_of(flags, CPU), strict=True):
        ours, theirs = phases
        steps = [choose_step(phase) for phase in phases]
        meters = [phase.meters() for phase in phases]
        for epoch in range(1, ours.epochs + 1):
            for phase in phases:
                phase.start_epoch(epoch)
            for pair in zip(*(phase.batches(epoch) for phase in phases), strict=True):
                tensors = held(ours)
                for name, value in held(theirs).items():
                    tensors[name].copy_(value)
                start, losses = student_of(theirs), []
                for phase, step, meter, (batch, outputs) in zip(phases, steps, meters, pair, strict=True):
                    meter.reset()
                    step(phase, batch, outputs, meter)
                    averages = meter.read()
                    losses.append([averages.loss, *averages.losses.values()])
                assert losses[0] == pytest.approx(losses[1], rel=2e-2, abs=1e-6)
                assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3, abs=1e-6)
                gone = student_of(theirs)
                assert (student_of(ours) - gone).norm() <= 1e-2 * (gone - start).norm()
            for phase in phases:
                phase.end_epoch(epoch)


@pytest.mark.parametrize("flags, cached, tolerance", [
    ("", True, 3e-3), ("--channels_last", False, 3e-3), ("--amp bf16", False, 0.05),
    ("--amp bf16 --channels_last", False, 0.05)])
def test_a_short_run_stays_close_to_plain_float32(flags, cached, tolerance):
    """Six steps, as tests/models/test_precision.py holds them on the CPU; bfloat16 has 8 significant bits. The teacher
    cache is built in larger batches than the live teacher's."""
    steps = ("--distill", "dkd", "--epochs", "2", "--learning_rate", "0.002")
    state, losses, _ = train(phases_of(steps))
    other_state, other, _ = train(phases_of((*steps, *flags.split()), cached=cached))
    for epoch, other_epoch in zip(losses, other, strict=True):
        assert other_epoch == pytest.approx(epoch, rel=tolerance)
    for key, value in state.items():
        assert other_state[key].dtype == value.dtype and other_state[key].shape == value.shape
        if value.is_floating_point():
            assert (other_state[key] - value).norm() <= 2 * tolerance * value.norm().clamp(min=1), key
    assert "bf16" not in flags or other != losses


def test_tf32_stays_close_to_float32():
    """It has 11 significant bits."""
    steps = ("--distill", "dkd", "--epochs", "2", "--learning_rate", "0.002")
    exact = train(phases_of(steps))[1]
    torch.backends.cudnn.allow_tf32 = True
    for losses, exact_losses in zip(train(phases_of(steps))[1], exact, strict=True):
        assert losses == pytest.approx(exact_losses, rel=0.01)
