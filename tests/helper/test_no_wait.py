"""A step of every method on the device `meta`, whose tensors have no values: whatever asks for one raises or is
flagged, and so is every tensor of another device. On CUDA each of these would wait for the device in every step."""
import contextlib
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import dataset
from distiller_zoo import METHODS
from helper import build
from helper.cli import student_options
from helper.step import choose_step
from helper.teacher.plan import TeacherPlan
from models import model_dict

META = torch.device("meta")
aten = torch.ops.aten
# What `meta` lets through, and what has the host wait for its result on CUDA.
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
         aten.bincount.default, aten.is_nonzero.default, aten._linalg_svd.default, aten.linalg_qr.default,
         aten._linalg_eigh.default, aten.repeat_interleave.Tensor}


class Watching(TorchDispatchMode):
    """Collects, as lines, the operators that wait for the device, and the tensors that are not on it."""

    def __init__(self):
        super().__init__()
        self.found: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITS:
            self.found.add(f"{function} waits")
        result = function(*args, **kwargs or {})
        if function in (aten.index.Tensor, aten.index_put_.default) and any(
                isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.found.add(f"{function} by a mask waits")
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        self.dtypes |= {x.dtype for x in tensors}
        if any(x.device != META for x in tensors):
            self.found.add(f"{function} sees a tensor of another device")
        return result


class WatchingConstants(TorchFunctionMode):
    """Adds to what a Watching has found the tensors made of Python's numbers, which are copied to the device."""

    def __init__(self, found: set[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor, torch.from_numpy):
            self.found.add(f"{function.__name__} copies to the device")
        return function(*args, **kwargs or {})


class Autocast(TorchFunctionMode):
    """bfloat16 for convolutions and products, as torch.autocast has it, which knows no `meta`."""

    LOWERED = (torch.conv2d, F.conv2d, F.conv_transpose2d, F.linear, torch.matmul, torch.Tensor.matmul,
               torch.Tensor.__matmul__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.LOWERED:
            args, kwargs = tree_map(lambda x: x.bfloat16() if isinstance(x, torch.Tensor) else x, (args, kwargs))
        return function(*args, **kwargs or {})


@pytest.fixture
def meta(monkeypatch):
    """`meta` with what a run asks of a device: a generator, and autocast."""
    torch.arange(2, device=META) * 2  # has PyTorch import what computes shapes, which takes both names for types
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    monkeypatch.setattr(torch, "autocast", lambda device, dtype=None, enabled=True: (
        Autocast() if enabled else contextlib.nullcontext()))


@lru_cache
def few_digits():
    digits = dataset.load("digits", "")
    few = dataset.Split(digits.train.images[:8], digits.train.labels[:8])
    return dataset.Data("digits", digits.classes, digits.mean, digits.std, False, few, few)


def phases_of(method, *flags):
    """A run's phases on `meta`: the method's first stage, if it has one, and the student's own epochs."""
    torch.manual_seed(0)
    data = few_digits()
    options = student_options(["--path_t", "t", "--model_s", "resnet8", "--distill", method, "--avg", "2",
                               "--batch_size", "4", *flags])
    teacher = model_dict["resnet8"](num_classes=10).requires_grad_(False)
    # Made on the CPU: what a method computes once of the teacher has values.
    trainee = build.make_student(options, data, teacher, torch.device("cpu"))
    for module in (teacher, trainee.network, trainee.method, trainee.objective):
        module.to(META)
    teaching = TeacherPlan(teacher, trainee.objective.reads, "live", None, {}, 4, trainee.precision)
    views = data.train_views(META, "strong" in trainee.objective.reads)
    return build.student_phases(options, trainee, teacher, teaching, views, record=None)


def to_meta(module):
    """Bring what a term has drawn or sorted at an epoch's start, outside its state, to `meta` too."""
    for part in module.modules():
        for held in vars(part).values():
            if type(held).__module__.startswith("distiller_zoo") and hasattr(held, "__dict__"):
                vars(held).update(tree_map(lambda x: x.to(META) if isinstance(x, torch.Tensor) else x, vars(held)))


def watch(phase):
    """What two epochs' steps do that they must not; the second is that in which IKD acts."""
    step, meters, watching = choose_step(phase), phase.meters(), Watching()
    for epoch in (1, 2):
        phase.start_epoch(epoch)
        to_meta(phase.objective)
        meters.reset()
        batches = phase.batches(epoch)
        first = next(batches)  # brings the epoch's plan to the device
        with watching, WatchingConstants(watching.found):
            step(phase, *first, meters)
            next(batches)
        phase.end_epoch(epoch)
    assert (torch.bfloat16 in watching.dtypes) == phase.precision.bf16
    return watching.found


@pytest.mark.parametrize("amp", ("none", "bf16"))
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(method, amp, meta, tmp_path):
    flags = ["--amp", amp, "--cache_dir", str(tmp_path), *(["--wkd_cost", "fc"] if method == "wkd" else [])]
    found = {phase.name: watch(phase) for phase in phases_of(method, *flags)}
    if method == "kdsvd":  # which says so: see KDSVD.uncapturable
        assert found["train"] == {"aten._linalg_svd.default waits", "aten.linalg_qr.default waits"}
    else:
        assert not any(found.values()), found
    stages = {"factor": "paraphraser", "abound": "boundaries", "fsp": "flows"}
    assert list(found) == [*([stages[method]] if method in stages else []), "train"]


@pytest.mark.parametrize("waits", (
    lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x + torch.tensor(1.0), lambda x: x.to("cpu"),
    lambda x: x.item(), lambda x: x[torch.tensor([0])], lambda x: x * torch.tensor(2.0, device=META)), ids=range(7))
def test_what_waits_raises_or_is_flagged(waits):
    watching, raised = Watching(), False
    with watching, WatchingConstants(watching.found):
        try:
            waits(torch.zeros(3, device=META))
        except (NotImplementedError, RuntimeError):
            raised = True
    assert watching.found or raised
