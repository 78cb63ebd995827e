"""DOT against five steps of its authors' code (golden/LATER.md), and in training."""
import pytest
import torch

from helper.dot import DOT
from tests.golden.cases import LATER, A

SHAPES = {"weight": (3, 4), "bias": (3,), "kd_only": (2, 3), "task_only": (5,)}


@pytest.mark.parametrize("delta", [0.075, 0])
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_five_steps_are_the_published_ones(delta, tensor_rate):
    parameters = {name: torch.nn.Parameter(A(f"a/dot/{name}", shape, 0.5)) for name, shape in SHAPES.items()}
    optimizer = DOT(parameters.values(), 0.05, 0.9, 5e-4, delta)
    if tensor_rate:  # as a captured step has it
        optimizer.param_groups[0]["lr"] = torch.tensor(0.05)
    steps = LATER[f"a/dot_m0.9_delta{delta}_lr0.05_wd5e-4"]["steps"]
    assert len(steps) == 5

    def gradients(kind, without, k):
        return [None if name == without else A(f"a/dot/{kind}_grad/{name}/{k}", shape)
                for name, shape in SHAPES.items()]

    for k, expected in enumerate(steps):
        optimizer.step(gradients("task", "kd_only", k), gradients("kd", "task_only", k))
        state = optimizer.state_dict()
        optimizer = DOT(parameters.values(), 0.05, 0.9, 5e-4, delta)  # resumed
        optimizer.load_state_dict(state)
        for name, values in expected.items():
            assert parameters[name].flatten().tolist() == pytest.approx(values, rel=1e-4, abs=1e-6)


def test_the_two_gradients_are_those_of_the_losses():
    x, y = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor(3.0))
    task, kd = DOT([x, y], 0.1, 0.9, 0.0, 0.0).backward((x**2).sum(), (y * x).sum())
    assert task[0].tolist() == [2.0, 4.0] and task[1] is None
    assert kd[0].tolist() == [3.0, 3.0] and kd[1].item() == 3.0
