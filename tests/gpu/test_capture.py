"""Captured steps on a CUDA device: bit-identical to eager ones, and what a failed capture leaves."""
import pytest
import torch
from torch import nn

from distiller_zoo import METHODS
from helper.cuda_graph import CapturedStep
from helper.step import train_step
from models import model_dict
from tests.end_to_end.test_resume import assert_same
from tests.support.on_gpu import CUDA, few_digits, needs_gpu, phases_of, train

pytestmark = [*needs_gpu, pytest.mark.usefixtures("deterministic")]
# Every method, and what else changes a step.
STEPS = [*METHODS, "kd --optimizer dot", "dkd --amp bf16 --channels_last", "dkd --nesterov"]


@pytest.mark.parametrize("flags", STEPS)
def test_eager_and_captured_steps_have_equal_bits_and_wait_for_nothing(flags):
    """With IKD and the method's first stage; what cannot be captured repeats itself. The epochs are so many that the
    full batch and the last one are captured and replayed, after IKD's mode has changed."""
    flags = ("--distill", *flags.split(), "--avg", "2")
    method = METHODS[flags[1]]
    waits = method.name == "kdsvd"  # which says so
    plain, captured = (train(phases_of(flags, captured=captured), watched=not waits) for captured in (False, True))
    assert_same(plain[0], captured[0])
    assert plain[1] == captured[1]
    is_captured = method.uncapturable is None
    assert isinstance(captured[2], CapturedStep) == is_captured
    if is_captured:
        assert sorted(size for size, _ in captured[2].captured) == [8, 16]


@pytest.mark.parametrize("student", model_dict)
def test_every_network_has_equal_bits(student):
    plain, captured = (train(phases_of(("--epochs", "5"), student=student, data=few_digits(1), captured=captured))
                       for captured in (False, True))
    assert_same(plain[0], captured[0])
    assert plain[1] == captured[1] and len(captured[2].captured) == 1


def test_a_captured_step_that_gathers_its_batch_has_equal_bits():
    flags = ("--distill", "dkd", "--avg", "2")
    plain, captured = (train(phases_of(flags, captured=captured, cached=True), watched=True)
                       for captured in (False, True))
    assert_same(plain[0], captured[0])
    assert plain[1] == captured[1]
    assert all(places[0].images is None for places, _ in captured[2].captured.values())


@pytest.mark.parametrize("fault", ["waits", "out of memory"])
def test_after_a_failed_capture_dropout_works_and_memory_comes_back(fault, capsys):
    def steps(phase):
        fault_left = [True]

        def step(phase, batch, teacher, meters):
            train_step(phase, batch, teacher, meters)
            nn.functional.dropout(batch.images, 0.5)
            if torch.cuda.is_current_stream_capturing() and fault_left.pop():
                if fault == "waits":
                    batch.images.sum().item()
                torch.empty(2**50, device=CUDA)

        return CapturedStep(step, phase)

    phases = phases_of(("--distill", "kd"))
    state, _, step = train(phases, steps)
    assert step.eager and not step.captured
    note = capsys.readouterr().out
    assert note.count("continuing eagerly") == 1 and ("out of memory" in note) == (fault == "out of memory")
    assert all(value.isfinite().all() for value in state.values())
    # What is freed from now on comes back: a failed capture's pool would hold it.
    del phases, step
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    del (x := [torch.empty(2**26, device=CUDA)])[0]
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before and not x


def test_the_graphs_share_their_memory():
    """Those of the full batch, the last one, and a second mode take no more than the first alone, by a quarter."""
    def reserved(epochs):
        torch.cuda.empty_cache()
        phases = list(phases_of(("--distill", "kd", "--avg", "2", "--epochs", str(epochs)), batch_size=40))
        train(phases)
        return torch.cuda.memory_reserved()

    first = reserved(2)
    assert reserved(6) <= 1.25 * first
