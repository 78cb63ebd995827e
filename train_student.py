"""Train a student on the labels and on what a trained teacher says, with or without the IKD term.

python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill kd \
    --model_s resnet8x4 -r 0.1 -a 0.9 -b 0 --trial 1
"""
import sys

import torch

import dataset
from distiller_zoo import METHODS, Setup
from helper import cli
from helper.cuda_graph import is_captured
from helper.evaluation import by_class
from helper.loop import LiveTeacher, Phase, fit, sgd
from helper.objective import Objective, student_objective
from helper.record import recipes
from helper.record.published import teacher_warning
from helper.record.run import open_run
from helper.schedule import rates
from helper.sync_bn import convert_sync_batchnorm
from helper.teacher import plan
from helper.util import distributed
from helper.util.errors import UsageError, guarded
from helper.util.seeding import derive_seed
from models import build, load_model
from models.precision import precision_of

FOLDERS = ("student_model", "student_tensorboards")


def main():
    options = cli.student_options(sys.argv[1:])
    device = cli.device_of(options)
    with distributed.local_rank_zero_first():
        teacher, checkpoint = load_model(options.path_t)
    with distributed.local_rank_zero_first():
        data = dataset.from_options(options)
    cli.check_shares(options, data)
    if checkpoint.num_classes != len(data.classes):
        raise UsageError(f"{options.path_t} is a teacher of {checkpoint.num_classes} classes, {options.dataset} has "
                         f"{len(data.classes)}: give a teacher trained on {options.dataset}")

    torch.manual_seed(derive_seed(options.seed, options.trial, "init"))
    student = build(options.model_s, len(data.classes))
    setup = probe(student, teacher, data)
    method = METHODS[options.distill](setup, options)
    objective = student_objective(method, setup, options)
    precision = precision_of(options, device)
    captured, step = is_captured(options.cuda_graph, objective, device)
    for module in (student, method, objective):
        if options.sync_bn:
            convert_sync_batchnorm(module, device)
        module.to(device)
    teacher.to(device)
    precision.prepare(student)

    run = open_run(options, FOLDERS, folder_name(options, teacher.name), student, data)
    if run.result is not None:
        return run.report()
    views = data.train_views(device)
    test = data.test_images(device)
    teacher.requires_grad_(False)
    teaching = plan.plan(options, teacher, data, setup.teacher, objective.reads, device, precision, run)
    teacher_accuracy = plan.tested(teacher, data, test, teaching.precision, options.cache_dir)
    run.start(device, precision, {
        "student": f"{options.model_s}, {parameters(student):,} parameters",
        "teacher": f"{teacher.name}, {parameters(teacher):,} parameters, test accuracy {teacher_accuracy.top1:.2f}",
        "loss": loss_in_words(method, objective, options), **teaching.facts, **step,
    })

    for line in (recipes.note(options), teacher_warning(teacher.name, data.name, teacher_accuracy.top1)):
        if line:
            print(f"note      {line}", flush=True)

    stage = method.stage(student) if options.beta != 0 else None
    if stage is not None:
        fit(stage_phase(stage, method, student, teacher, precision, device, options), views, test, run, options)
        for module in stage.modules:
            module.requires_grad_(False)
    source = teaching.open(views, lambda: run.stop_if_asked(together=False))
    if options.ikd_means == "all":
        objective.terms["ikd"].fix_means(*source.class_sums(data.train.labels, len(data.classes)))
    phase = Phase(
        "train", student, source, objective,
        sgd([p for p in (*student.parameters(), *objective.parameters()) if p.requires_grad], options),
        rates(options), options.epochs, {"student": student, "objective": objective}, precision=precision,
        ahead=plan.batches_ahead(setup.teacher, objective.reads, options.batch_size, device), captured=captured)
    fit(phase, views, test, run, options)
    run.finish(phase, {"teacher": teacher.name, "teacher_top1": teacher_accuracy.top1, "terms": list(objective.terms),
                       **by_class(student, test, data, precision)})
    run.report()


def probe(student, teacher, data) -> Setup:
    """What a method may know: both networks' outputs for two black images, for their shapes; the labels, the names."""
    images = torch.zeros(2, *data.image_shape)
    with torch.no_grad():
        out_s, out_t = (network.eval()(images, named=True, cam=True) for network in (student, teacher))
    return Setup(out_s, out_t, student.name, teacher.name, data.train.labels, len(data.classes))


def stage_phase(stage, method, student, teacher, precision, device, options) -> Phase:
    """A method's first stage, as a stretch of training like any other."""
    for module in stage.modules:
        module.requires_grad_(True)
    objective = Objective({stage.name: stage.term})
    trained = [p for module in stage.modules for p in module.parameters()]
    if stage.trains_features:
        trained += student.feature_parameters()
    rate = stage.learning_rate(student.name, options.learning_rate)
    return Phase(stage.name, student, LiveTeacher(teacher, objective.reads, precision), objective,
                 sgd(trained, options), lambda epoch: rate, options.init_epochs, {"student": student, "method": method},
                 evaluates=False, precision=precision, captured=is_captured(options.cuda_graph, objective, device)[0])


def folder_name(o, teacher_name) -> str:
    """The published name of a student's folder."""
    return (f"S:{o.model_s}_T:{teacher_name}_{dataset.title(o)}_{o.distill}_r:{o.gamma}_a:{o.alpha}_b:{o.beta}"
            f"_intrat:{o.intra_T}_avg:{o.avg}_{o.trial}")


def loss_in_words(method, objective, o) -> str:
    """The resolved loss, as '1·CE + dkd [T²·(a·TCKD + b·NCKD); a=1, b=8, kd_T=4.0] + 6.5·IKD(T=1)'."""
    flags = [f"{flag.name[2:]}={getattr(o, flag.name[2:])}" for flag in method.flags]
    own = ", ".join([f"a={o.alpha:g}", f"b={o.beta:g}", *flags])
    words = {"ce": f"{o.gamma:g}·CE", "kd": f"{o.alpha:g}·KD(T={getattr(o, 'kd_T', '')})",
             "ikd": f"{o.avg:g}·IKD(T={o.intra_T:g})"} | {method.name: f"{method.name} [{method.formula}; {own}]"}
    return " + ".join(words[name] for name in objective.terms)


def parameters(network) -> int:
    return sum(p.numel() for p in network.parameters())


if __name__ == "__main__":
    guarded(main)
