"""How the losses of this repository are held against the golden cases (see README.md beside this file)."""
import json
from pathlib import Path

import pytest
import torch

from tests.golden import recipe

HERE = Path(__file__).parent
LOSSES = json.loads((HERE / "losses.json").read_text())
LATER = json.loads((HERE / "later.json").read_text())
A = recipe.tensor


def logits():
    """The student's and teacher's logits and the labels of the golden cases."""
    return (A("a/student", (16, 100), 2.0).requires_grad_(), A("a/teacher", (16, 100), 4.0),
            recipe.labels("a/target", 16, 100))


def check(case, loss, *students):
    """The loss and its gradients with respect to `students` equal the case `a/case`, relative 1e-4."""
    golden = LOSSES[f"a/{case}"]
    grads = torch.autograd.grad(loss, students)
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-4)
    assert [g.norm().item() for g in grads] == pytest.approx(golden["grad_norm"], rel=1e-4)
    assert [g.flatten()[0].item() for g in grads] == pytest.approx(golden["grad_first"], rel=1e-4, abs=1e-12)


def check_later(case, loss, *students):
    """As check, for the case `a/case` of later.json, and the gradients' products with fixed directions."""
    golden = LATER[f"a/{case}"]
    grads = torch.autograd.grad(loss, students)
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-4)
    norms = [g.norm().item() for g in grads]
    dots = [(g * A(f"a/probe{i}", tuple(g.shape) or (1,))).sum().item() for i, g in enumerate(grads)]
    assert norms == pytest.approx(golden["grad_norm"], rel=1e-4)
    assert dots == pytest.approx(golden["grad_dot"], rel=1e-4)
    for g, first, norm in zip(grads, golden["grad_first"], golden["grad_norm"], strict=True):
        assert g.flatten()[0].item() == pytest.approx(first, rel=1e-4, abs=1e-6 * norm)
