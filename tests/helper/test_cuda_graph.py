"""A captured step, held against the plain one.

The tests need no CUDA, so the capture is one of the CPU: it records every operation of a step with the tensors that it
reads and writes, and repeats those. As a CUDA graph, it knows fixed addresses alone, and no Python value that has
changed since."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dataset
from distiller_zoo import METHODS, Term
from helper import cuda_graph
from helper.build import make_setup
from helper.cli import student_options
from helper.cuda_graph import CapturedStep, is_captured
from helper.meters import Meters
from helper.objective import CrossEntropy, Objective, student_objective
from helper.step import Phase, train_step
from helper.teacher.loader import DistillLoader
from helper.teacher.source import CachedTeacher, LiveTeacher, NoTeacher
from helper.util.errors import UsageError
from helper.util.nested import tensors
from models import model_dict
from tests.end_to_end.test_resume import assert_same

CPU = torch.device("cpu")
BATCHES, BATCH, LAST = 3, 4, 3


class Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        self.calls.append((function, args, kwargs or {}, result))
        return result


class Recorder:
    """In the place of CudaGraphs. The recorded run is itself the first step, so the first replay does nothing.

    held, released: how many recordings there are, and how many were released each time
    """

    def __init__(self):
        self.held, self.released = 0, []

    def capture(self, step):
        recording, fresh = Recording(), [True]
        with recording:
            step()
        self.held += 1

        @torch.no_grad()
        def replay():
            if fresh.pop() if fresh else False:
                return
            for function, args, kwargs, result in recording.calls:
                again = function(*args, **kwargs)
                for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(place, torch.Tensor) and place is not value:
                        place.copy_(value)

        return replay

    def release(self):
        self.released.append(self.held)
        self.held = 0


def few_digits(n):
    digits = dataset.load("digits", "")
    few = dataset.Split(digits.train.images[:n], digits.train.labels[:n])
    return dataset.Data("digits", digits.classes, digits.mean, digits.std, False, few, few)


def train(method, take_by, epochs=3, ahead=1, cached=False):
    """A student's, its objective's and its meters' states after some epochs of BATCHES + 1 batches."""
    torch.manual_seed(0)
    data = few_digits(BATCHES * BATCH + LAST)
    student, teacher = (model_dict[name](num_classes=10) for name in ("resnet8", "resnet8"))
    options = student_options(["--path_t", "t", "--distill", method, "--avg", "2", "--learning_rate", "0.01"])
    setup = make_setup(student, teacher, data, lambda name, compute: 1 - torch.eye(10))
    built = METHODS[method](setup, options)
    stage = built.stage(student)
    objective = Objective({stage.name: stage.term}) if stage else student_objective(built, setup, options)
    trained = [*student.feature_parameters(), *built.parameters()] if stage else [
        *student.parameters(), *objective.parameters()]
    # The fused kernel takes its learning rate from a tensor, as the one of CUDA does.
    optimizer = torch.optim.SGD([p.requires_grad_() for p in trained], lr=0.01, momentum=0.9, fused=True)
    views = data.train_views(CPU, "strong" in objective.reads)
    source = LiveTeacher(teacher, objective.reads)
    if cached:
        source = CachedTeacher({"logits": torch.randn(len(views), 81, 10, generator=torch.Generator().manual_seed(0))},
                               views.flip)
    loader = DistillLoader(views, source, BATCH, ahead)
    phase = Phase("train", student, loader, objective, optimizer, lambda epoch: 0.01 / epoch, epochs, (0, "1"))
    take, meters, read = take_by(phase), Meters(list(objective.terms), CPU), []
    for epoch in range(1, epochs + 1):
        phase.start_epoch(epoch)
        meters.reset()
        for batch, outputs in phase.batches(epoch):
            take(phase, batch, outputs, meters)
        read.append(meters.read())
        phase.end_epoch(epoch)
    held = [[list(a.losses.items()), a.loss, str(a.top1)] for a in read]
    return {"net": student.state_dict(), "objective": objective.state_dict(), "meters": held}, take


CAPTURABLE = [name for name, method in METHODS.items() if method.uncapturable is None]


def capturing(graphs=Recorder):
    return lambda phase: CapturedStep(train_step, phase, graphs())


@pytest.mark.parametrize("method", CAPTURABLE)
def test_a_captured_step_is_the_plain_one(method, monkeypatch):
    """Bit for bit, over epochs of full batches and a last smaller one, in and after the epoch that IKD collects in;
    the counters of batch norm, which the recording leaves out, too."""
    monkeypatch.setattr(cuda_graph, "EAGER_STEPS", 1)
    plain, _ = train(method, lambda phase: train_step, epochs=4)
    captured, steps = train(method, capturing(), epochs=4)
    assert_same(plain, captured)
    # After the first epoch, in which there is one small batch, IKD's mode is another: the first one's graph is dropped.
    with_ikd = "ikd" in plain["meters"][0][0][-1]
    assert sorted(size for size, _ in steps.captured) == [LAST, BATCH]
    assert steps.graphs.released == [1] * with_ikd and steps.graphs.held == 2
    counters = [value for name, value in plain["net"].items() if name.endswith("num_batches_tracked")]
    assert len(counters) > 5 and steps.counts.norms


@pytest.mark.parametrize("cached", [False, True])
def test_a_captured_step_gathers_its_batch(cached, monkeypatch):
    """Then index and view are all that is copied to it; the bits stay."""
    monkeypatch.setattr(cuda_graph, "EAGER_STEPS", 1)
    plain, _ = train("kd", lambda phase: train_step, cached=cached)

    def deferred(phase):
        phase.loader.deferred = True
        return CapturedStep(train_step, phase, Recorder())

    captured, steps = train("kd", deferred, cached=cached)
    assert_same(plain, captured)
    assert {len(list(tensors(places))) for places, _ in steps.captured.values()} == {2}


def test_which_teachers_a_captured_step_may_ask():
    views, cuda = few_digits(2).train_views(CPU), torch.device("cuda")
    live = LiveTeacher(model_dict["resnet8"](num_classes=10), frozenset({"logits"}))
    cached = CachedTeacher({"logits": torch.zeros(2, 81, 10)}, views.flip)
    growing = CachedTeacher(cached.tables, views.flip, fill=lambda plan: None)
    assert NoTeacher().gathers_on(CPU) and cached.gathers_on(CPU)
    assert not any(source.gathers_on(device) for source, device in ((live, CPU), (growing, CPU), (cached, cuda)))


def test_methods_say_why_they_are_not_captured():
    assert set(METHODS) - set(CAPTURABLE) == {"crd", "kdsvd"}
    objective = Objective({"ce": CrossEntropy()})
    assert is_captured("auto", objective, torch.device("cuda")) == (True, {"step": "one CUDA graph"})
    assert is_captured("off", objective, torch.device("cuda")) == (False, {"step": "eager"})
    assert is_captured("auto", objective, CPU) == (False, {})
    with pytest.raises(UsageError, match="CUDA devices alone"):
        is_captured("on", objective, CPU)

    class Draws(Term):
        uncapturable = "draws"

    drawing = Objective({"ce": CrossEntropy(), "mine": Draws()})
    assert is_captured("auto", drawing, torch.device("cuda")) == (False, {"step": "eager: mine draws"})
    with pytest.raises(UsageError, match="mine draws"):
        is_captured("on", drawing, torch.device("cuda"))


class Failing(Recorder):
    """The end of a capture raises too, as CUDA's does, which hides the cause."""

    def capture(self, step):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        finally:
            raise RuntimeError("the capture was invalidated")


def test_where_a_capture_fails_training_continues_eagerly_and_the_cause_is_named(capsys):
    plain, _ = train("kd", lambda phase: train_step)
    other, steps = train("kd", capturing(Failing))
    assert_same(plain, other)
    assert capsys.readouterr().out.splitlines() == [
        "note      the step cannot be captured (operation not permitted when stream is capturing): continuing eagerly"]
    assert not steps.captured and steps.graphs.released == [0]


def test_a_step_that_runs_out_of_memory_beside_the_graphs_is_repeated_without_them(monkeypatch, capsys):
    """As if it had not begun: batch norm's statistics, which it has moved already, and IKD's sums are as before."""
    monkeypatch.setattr(cuda_graph, "EAGER_STEPS", 1)
    plain, _ = train("dkd", lambda phase: train_step)
    fails = iter([True] + [False] * 9)

    def step(phase, batch, teacher, meters):
        if len(batch.labels) == LAST and phase.objective.mode()[-1] is False and next(fails):
            phase.forward(batch, teacher)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")
        train_step(phase, batch, teacher, meters)

    other, steps = train("dkd", lambda phase: CapturedStep(step, phase, Recorder()))
    assert_same(plain, other)
    assert capsys.readouterr().out.count("(CUDA out of memory. Tried to allocate 2.00 GiB.): continuing eagerly") == 1
    assert not steps.captured and steps.graphs.released == [1, 1]


def test_out_of_memory_without_graphs_is_the_runs_own():
    def step(phase, batch, teacher, meters):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        train("kd", lambda phase: CapturedStep(step, phase, Recorder()))


@pytest.mark.parametrize("method", ["kd", "attention"])
def test_a_teacher_that_works_ahead_says_the_same(method):
    """On several batches at once, of feature maps and of logits; float32 differs in the last bits at most."""
    plain, _ = train(method, lambda phase: train_step)
    ahead, _ = train(method, lambda phase: train_step, ahead=4)
    for key, value in plain["net"].items():
        torch.testing.assert_close(ahead["net"][key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_lessons_are_the_batches_of_the_plan_whatever_is_ahead():
    views = few_digits(BATCHES * BATCH + LAST).train_views(CPU)
    teacher = LiveTeacher(model_dict["resnet8"](num_classes=10), frozenset({"logits", "stages"}))
    seen = {}
    for ahead in (1, 3):
        seen[ahead] = list(DistillLoader(views, teacher, BATCH, ahead).epoch(0, "1", "train", 1))
    assert [len(batch.labels) for batch, _ in seen[3]] == [BATCH] * BATCHES + [LAST]
    for (batch, outputs), (other, others) in zip(seen[1], seen[3], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(batch), tensors(other), strict=True))
        assert len(outputs.stages) == 3 and outputs.pooled is None
        for a, b in zip((outputs.logits, *outputs.stages), (others.logits, *others.stages), strict=True):
            torch.testing.assert_close(a, b)
