"""`--compile`: losses and meters through torch.compile are the eager ones, and a machine without a compiler says so."""
import copy

import pytest
import torch

import dataset
from dataset import Batch
from distiller_zoo import METHODS
from helper import build
from helper.cli import student_options, teacher_options
from helper.meters import Meters
from helper.objective import Objective, student_objective
from helper.step import Phase, choose_step
from helper.teacher.loader import DistillLoader
from helper.teacher.source import NoTeacher
from helper.util.nested import each
from models import Outputs, model_dict
from models.precision import Precision, cannot_compile

CPU = torch.device("cpu")
IMAGES = 8


@pytest.fixture
def compiler():
    why = cannot_compile(CPU)
    if why:
        pytest.skip(why)


def pair_of(method, *flags):
    """A student's objective with the method and IKD, what both networks say of a batch, and the batch."""
    torch.manual_seed(0)
    options = student_options(["--path_t", "t", "--distill", method, "--avg", "2", *flags])
    digits = dataset.load("digits", "")
    few = dataset.Split(digits.train.images[:IMAGES], digits.train.labels[:IMAGES])
    data = dataset.Data("digits", digits.classes, digits.mean, digits.std, False, few, few)
    student, teacher = (model_dict["resnet8"](num_classes=10) for _ in range(2))
    setup = build.make_setup(student, teacher, data, lambda name, compute: 1 - torch.eye(10))
    objective = student_objective(METHODS[method](setup, options), setup, options)
    images = torch.randn(IMAGES, 3, 32, 32)
    with torch.no_grad():
        outputs = [network(images, named=True, cam=True)._replace(strong=network(-images)) for network in
                   (student, teacher)]
    return objective, *outputs, Batch(images, few.labels, torch.arange(IMAGES), torch.zeros(IMAGES).long())


def losses_and_gradients(objective, student, teacher, batch):
    """Of each step of two epochs, IKD collecting in the first; the gradient of the logits, the pooled vector and the
    last stage."""
    found = []
    for epoch in (1, 2):
        objective.start_epoch(epoch, torch.Generator().manual_seed(epoch))
        out = Outputs(*each(lambda x: x.clone().requires_grad_(), student))
        losses = objective(out, teacher, batch)
        gradients = torch.autograd.grad(sum(losses.values()), [out.logits, out.pooled, out.stages[-1]],
                                        allow_unused=True)
        found.append((losses, gradients))
        objective.end_epoch(epoch)
    return found


def assert_compiled_is_eager(objective, *inputs, backend="inductor"):
    other = copy.deepcopy(objective)
    other.compile(backend=backend)
    for (a, grads_a), (b, grads_b) in zip(losses_and_gradients(objective, *inputs),
                                          losses_and_gradients(other, *inputs), strict=True):
        assert list(a) == list(b)
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=1e-6, atol=1e-6)
        for one, two in zip(grads_a, grads_b, strict=True):
            assert (one is None) == (two is None)
            assert one is None or (one - two).norm() <= 1e-5 * one.norm() + 1e-7
    return [torch.equal(x, y) for x, y in zip(grads_a, grads_b, strict=True) if x is not None]


@pytest.mark.slow  # a minute of a core, of which the compiler takes the most
def test_losses_of_kd_dkd_and_ikd_are_the_eager_ones(compiler):
    objective, *inputs = pair_of("dkd")
    other, *_ = pair_of("kd", "-a", "0.9")
    same = assert_compiled_is_eager(Objective({**dict(objective.items()), "kd": dict(other.items())["kd"]}), *inputs)
    assert not all(same), "it was not compiled"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_losses_of_every_method_are_traced_as_they_are(method):
    """By torch.compile's first half, which needs no compiler."""
    assert_compiled_is_eager(*pair_of(method), backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_compiled_losses_of_every_method_are_the_eager_ones(method, compiler):
    assert_compiled_is_eager(*pair_of(method))


@pytest.mark.slow
def test_meters_are_the_eager_ones(compiler):
    eager, compiled = (Meters(["ce", "kd"], CPU) for _ in range(2))
    compiled.compile()
    torch.manual_seed(0)
    for size in (8, 8, 5):
        losses = {name: torch.rand(()) for name in ("ce", "kd")}
        logits, labels = torch.randn(size, 10), torch.randint(10, (size,))
        for meters in (eager, compiled):
            meters.update(losses, losses["ce"] + losses["kd"], logits, labels)
    assert compiled.read() == eager.read()
    assert type(compiled.update) is not type(eager.update)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_phase_compiles_its_losses_and_meters(compiled):
    objective, _, teacher, batch = pair_of("kd")
    network = model_dict["resnet8"](num_classes=10)
    loader = DistillLoader(dataset.load("digits", "").train_views(CPU), NoTeacher(), IMAGES)
    phase = Phase("train", network, loader, objective, torch.optim.SGD(network.parameters()), lambda epoch: 0.1, 1,
                  (0, "1"), precision=Precision(compiled=compiled))
    meters = phase.meters()
    with torch.compiler.set_stance("force_eager"):  # what is compiled runs as it is
        choose_step(phase)(phase, batch, teacher, meters)
    assert meters.samples == IMAGES
    assert [phase.objective._compiled_call_impl is not None, "update" in vars(meters)] == [compiled] * 2


def test_without_a_compiler_a_run_says_so_and_is_eager():
    options = teacher_options(["--model", "resnet8", "--compile"])
    cannot_compile.cache_clear()
    torch.compiler.reset()  # what other tests have compiled would serve
    with torch._inductor.config.patch({"cpp.cxx": (None, "none"), "force_disable_caches": True}):
        trainee = build.make_teacher(options, dataset.load("digits", ""), CPU)
    cannot_compile.cache_clear()
    assert not trainee.precision.compiled
    assert trainee.step_facts["compile"].startswith("left out: torch.compile does not work here (InvalidCxxCompiler")
    assert build.make_teacher(teacher_options(["--model", "resnet8"]), dataset.load("digits", ""), CPU).step_facts == {}
