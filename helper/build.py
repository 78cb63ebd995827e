"""What a run is made of: data, networks, objective and phases, as its options say."""
import hashlib
import os
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import dataset
from dataset import Data, TrainData, TrainViews
from distiller_zoo import METHODS, Method, Setup, Stage
from distiller_zoo.ikd import IKD
from helper import device as devices
from helper.cuda_graph import is_captured
from helper.deterministic import check_deterministic
from helper.evaluation import Evaluation
from helper.objective import CrossEntropy, Objective, student_objective
from helper.record.naming import loss_in_words
from helper.record.published import teacher_warning
from helper.record.run import Record
from helper.schedule import schedule
from helper.step import Phase, make_optimizer, sgd
from helper.teacher.classes import class_matrix
from helper.teacher.loader import DistillLoader
from helper.teacher.plan import TeacherPlan, batches_ahead, needs_all_views
from helper.teacher.source import CachedTeacher, LiveTeacher, NoTeacher
from helper.util import distributed
from helper.util.errors import UsageError
from helper.util.seeding import derive_seed
from models import Classifier, Outputs, build, load_model
from models.precision import Precision, cannot_compile, precision_of


@dataclass(frozen=True)
class Trainee:
    """A network to train, and all that its training is made of but the data and the teacher's outputs.

    method, setup: None for a network that learns from the labels alone; stage: what the method trains first
    captured: whether a step runs as a CUDA graph; step_facts: what to say of that
    """

    network: Classifier
    objective: Objective
    precision: Precision
    captured: bool
    step_facts: dict[str, str]
    method: Method | None = None
    setup: Setup | None = None
    stage: Stage | None = None


def load_data(options: Namespace) -> Data:
    """The data set of the run. Raises DataError, and UsageError where its batches cannot be shared or trained on."""
    with distributed.local_rank_zero_first():
        data = dataset.from_options(options)
    world, last = distributed.world_size(), len(data.train) % options.batch_size
    if len(data.test) < world:
        raise UsageError(f"{data.name} has {len(data.test)} test images, too few for {world} processes: start fewer")
    if options.batch_size % world:
        raise UsageError(f"--batch_size {options.batch_size} cannot be shared equally by {world} processes: give a "
                         f"multiple of {world}")
    if 0 < last < world:
        raise UsageError(f"the last batch of an epoch has {last} of the {len(data.train):,} images, too few "
                         f"for {world} processes: give another --batch_size")
    return data


def load_teacher(options: Namespace, data: Data) -> Classifier:
    """The frozen teacher. Raises CheckpointError, ModelError, and UsageError where it has other classes."""
    with distributed.local_rank_zero_first():
        teacher, checkpoint = load_model(options.path_t)
    if checkpoint.num_classes != len(data.classes):
        raise UsageError(f"{options.path_t} is a teacher of {checkpoint.num_classes} classes, {options.dataset} has "
                         f"{len(data.classes)}: give a teacher trained on {options.dataset}")
    return teacher.requires_grad_(False)


def make_student(options: Namespace, data: Data, teacher: Classifier, device: torch.device) -> Trainee:
    """The student with its method and objective, and the teacher, on the device. Raises MethodError, UsageError."""
    student = _new_network(options.model_s, options, data)
    def classes(name, compute):
        return class_matrix(name, compute, teacher, data, options.cache_dir, device)

    setup = make_setup(student, teacher, data, classes)
    method = METHODS[options.distill](setup, options)
    objective = student_objective(method, setup, options)
    stage = method.stage(student) if options.beta != 0 else None
    if options.deterministic and device.type == "cuda":
        first = [Objective({stage.name: stage.term})] if stage else []
        check_deterministic(student, [*first, objective], setup.teacher, data)
    teacher.to(device)
    return _placed(student, objective, options, data, device, method, setup, stage)


def make_teacher(options: Namespace, data: Data, device: torch.device) -> Trainee:
    """A network that learns from the labels alone, on the device. Raises UsageError, ModelError."""
    network = _new_network(options.model, options, data)
    with torch.no_grad():
        network.eval()(torch.zeros(1, *data.image_shape))  # one that does not take these images refuses here
    objective = Objective({"ce": CrossEntropy()})
    if options.deterministic and device.type == "cuda":
        check_deterministic(network, [objective], Outputs(), data)
    return _placed(network, objective, options, data, device)


def make_setup(student: Classifier, teacher: Classifier, data: Data, classes=None) -> Setup:
    """What a method may know: both networks' outputs for two black images, for their shapes; labels and names.

    classes: Setup.teacher_classes
    """
    images = torch.zeros(2, *data.image_shape)
    with torch.no_grad():
        out_s, out_t = (network.eval()(images, named=True, cam=True) for network in (student, teacher))
    classifier = teacher.classifier_layer()
    return Setup(out_s, out_t, student.name, teacher.name, data.train.labels, len(data.classes),
                 None if classifier is None else classifier.weight.detach().clone(), classes)


def student_phases(options: Namespace, trainee: Trainee, teacher: Classifier, teaching: TeacherPlan, views: TrainData,
                   record: Record) -> Iterator[Phase]:
    """A method's first stage, where it has one, then the student's own epochs; each is made when it is asked for."""
    objective, setup, stage = trainee.objective, trainee.setup, trainee.stage
    assert setup is not None  # a student has one
    if stage is not None:
        yield _stage_phase(stage, options, trainee, teacher, views)
        for module in stage.modules:
            module.requires_grad_(False)
    source = teaching.open(views, lambda: record.stop_if_asked(together=False))
    if needs_all_views(options):
        ikd = objective.terms["ikd"]
        assert isinstance(ikd, IKD) and isinstance(source, CachedTeacher)  # plan_teacher has seen to that
        ikd.fix_means(*source.class_sums(views.labels, setup.num_classes))
    ahead = batches_ahead(views, source, objective.reads, options.batch_size)
    yield _main_phase(options, trainee, DistillLoader(views, source, options.batch_size, ahead,
                                                      _deferred(trainee, source, views)))


def teacher_phase(options: Namespace, trainee: Trainee, views: TrainData) -> Phase:
    """All epochs of a network that learns from the labels alone."""
    source = NoTeacher()
    return _main_phase(options, trainee, DistillLoader(views, source, options.batch_size,
                                                       deferred=_deferred(trainee, source, views)))


def decisions(options: Namespace, data: Data, device: torch.device, precision: Precision,
              teacher: Classifier | None = None) -> dict[str, Any]:
    """What the run decides beside its options, and what they name: a resumed run must decide the same."""
    found = {"device": device.type, "processes": distributed.world_size(), "amp": "bf16" if precision.bf16 else "none",
             "channels_last": precision.channels_last}
    if data.content() is not None:
        found["data_content"] = data.content()
    if teacher is not None:
        found["teacher"] = teacher.name
        found["teacher_sha256"] = _sha256(options.path_t)
    return found


def _facts(options, data, trainee, device):
    """What a run says at its start, whatever is trained."""
    o, world = options, distributed.world_size()
    warmup = f", warm-up {o.warm_up} epochs" if o.warm_up > 1 else ""
    decay = f", ×{o.lr_decay_rate:g} after {', '.join(map(str, o.lr_decay_epochs))}" if o.lr_decay_epochs else ""
    shared = "" if world == 1 else (
        f", in each of {world} processes, which share a batch: {o.batch_size // world} images each, batch norm "
        + ("over the whole batch" if o.sync_bn else "in each process"))
    return {
        "data": f"{data.name}, {len(data.train):,} training and {len(data.test):,} test images, "
                f"{len(data.classes)} classes{data.note}",
        "schedule": f"{o.epochs} epochs of batches of {o.batch_size}, learning rate {o.learning_rate:g}{warmup}{decay}",
        "device": devices.describe(device) + shared,
        "precision": trainee.precision.in_words(device) + (" (--fast)" if o.fast else ""),
        **trainee.step_facts,
    }


def student_facts(options: Namespace, data: Data, trainee: Trainee, teacher: Classifier, accuracy: Evaluation,
                  teaching: TeacherPlan, device: torch.device) -> dict[str, str]:
    """What a student's run says at its start; accuracy: the teacher's on the test set."""
    return {
        "student": f"{options.model_s}, {_parameters(trainee.network):,} parameters",
        "teacher": f"{teacher.name}, {_parameters(teacher):,} parameters, test accuracy {accuracy.top1:.2f}",
        "loss": loss_in_words(METHODS[options.distill], list(trainee.objective.terms), trainee.stage, options),
        **teaching.facts,
        **_facts(options, data, trainee, device),
    }


def teacher_facts(options: Namespace, data: Data, trainee: Trainee, device: torch.device) -> dict[str, str]:
    """What a teacher's run says at its start."""
    return {"model": f"{options.model}, {_parameters(trainee.network):,} parameters", "loss": "CE",
            **_facts(options, data, trainee, device)}


def teacher_notes(teacher: Classifier, data: Data, accuracy: Evaluation) -> list[str]:
    """A line where the teacher tests far from the published one of its name."""
    warning = teacher_warning(teacher.name, data.name, accuracy.top1)
    return [f"note      {warning}"] if warning else []


def _new_network(name, options, data):
    torch.manual_seed(derive_seed(options.seed, options.trial, "init"))
    return build(name, len(data.classes))


def _placed(network, objective, options, data, device, method=None, setup=None, stage=None):
    _check_single_images(network, options, data)
    precision = precision_of(options, device)
    captured, step_facts = is_captured(options.cuda_graph, objective, device)
    if options.compile and not precision.compiled:
        step_facts["compile"] = f"left out: torch.compile does not work here ({cannot_compile(device)})"
    for module in (network, objective) if method is None else (network, method, objective):
        if options.sync_bn and distributed.world_size() > 1:
            convert_sync_batchnorm(module, device)
        module.to(device)
    return Trainee(precision.prepare(network), objective, precision, captured, step_facts, method, setup, stage)


def convert_sync_batchnorm(module: nn.Module, device: torch.device) -> None:
    """Give every batch norm inside the statistics of all processes' images, by PyTorch's SyncBatchNorm, which needs
    CUDA; names and values of the state, hooks and activations stay. Raises UsageError on the CPU."""
    if device.type == "cpu":
        raise UsageError("--sync_bn: PyTorch's SyncBatchNorm needs CUDA devices; leave it out")
    for name, child in module.named_children():
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            setattr(module, name, _with_hooks_of(child, nn.SyncBatchNorm.convert_sync_batchnorm(child)))
        elif type(child).__name__ == "BatchNormAct2d":  # timm's batch norm with its activation
            from timm.layers import convert_sync_batchnorm as convert
            setattr(module, name, _with_hooks_of(child, convert(child)))
        else:
            convert_sync_batchnorm(child, device)


def _with_hooks_of(before, after):
    for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(after, kind).update(getattr(before, kind))
    return after


def _check_single_images(network, options, data):
    """Batch norm cannot train on a single image where its map is 1×1: found here rather than at an epoch's end.
    Raises UsageError."""
    world, last = distributed.world_size(), len(data.train) % options.batch_size
    shares = [*distributed.share_sizes(options.batch_size), *distributed.share_sizes(last or options.batch_size)]
    if 1 not in shares or (options.sync_bn and world > 1):
        return
    state = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        network.train()(torch.zeros(1, *data.image_shape))
    except ValueError as error:
        where = ("a process's share of a batch" if world > 1 else
                 "a batch" if options.batch_size == 1 else "the last batch")
        raise UsageError(f"{where} has a single image, on which {network.name} cannot train ({error}): give another "
                         "--batch_size") from None
    finally:
        network.load_state_dict(state)


def _deferred(trainee, source, views):
    """Whether a captured step gathers its batch itself (DistillLoader.deferred)."""
    return trainee.captured and isinstance(views, TrainViews) and source.gathers_on(views.labels.device)


def _main_phase(options, trainee, loader):
    trained = [p for p in (*trainee.network.parameters(), *trainee.objective.parameters()) if p.requires_grad]
    return Phase("train", trainee.network, loader, trainee.objective, make_optimizer(trained, options),
                 schedule(options), options.epochs, (options.seed, options.trial),
                 {"student": trainee.network, "objective": trainee.objective},
                 precision=trainee.precision, captured=trainee.captured)


def _stage_phase(stage, options, trainee, teacher, views):
    for module in stage.modules:
        module.requires_grad_(True)
    objective = Objective({stage.name: stage.term})
    trained: list[nn.Parameter] = [p for module in stage.modules for p in module.parameters()]
    if stage.trains_features:
        trained += trainee.network.feature_parameters()
    learning_rate = stage.learning_rate(trainee.network.name, options.learning_rate)
    loader = DistillLoader(views, LiveTeacher(teacher, objective.reads, trainee.precision), options.batch_size)
    return Phase(stage.name, trainee.network, loader, objective, sgd(trained, options), lambda epoch: learning_rate,
                 options.init_epochs, (options.seed, options.trial),
                 {"student": trainee.network, "method": trainee.method}, evaluates=False, precision=trainee.precision,
                 captured=is_captured(options.cuda_graph, objective, views.labels.device)[0])


def _sha256(path):
    """Of a teacher's file; None for a library's network, which has none."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _parameters(network):
    return sum(p.numel() for p in network.parameters())
