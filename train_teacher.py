"""Train a network with the labels alone: a teacher, or the baseline of a student.

python train_teacher.py --model wrn_40_2
"""
import sys

import torch

import dataset
from helper import cli
from helper.by_class import by_class
from helper.cuda_graph import is_captured
from helper.loop import LiveTeacher, Phase, fit, sgd
from helper.objective import CrossEntropy, Objective
from helper.record.run import open_run
from helper.schedule import rates
from helper.sync_bn import synchronise
from helper.util import distributed
from helper.util.errors import guarded
from helper.util.seeding import stream
from models import build
from models.precision import precision_of


def main():
    options = cli.teacher_options(sys.argv[1:])
    device = cli.device_of(options)
    with distributed.one_by_machine():
        data = dataset.from_options(options)
    cli.check_shares(options, data)
    torch.manual_seed(stream(options.seed, options.trial, "init"))
    net = build(options.model, len(data.classes))
    with torch.no_grad():
        net.eval()(torch.zeros(1, *data.image_shape))  # a net that does not take these images refuses here
    if options.sync_bn:
        synchronise(net, device)
    net.to(device)
    objective = Objective({"ce": CrossEntropy()})
    precision = precision_of(options, device)
    captured, step = is_captured(options.cuda_graph, objective, device)

    run = open_run(options, ("models", "tensorboard"), folder_name(options), net, data)
    if run.result is not None:
        return run.report()
    precision.prepare(net)
    run.start(device, precision, {
        "model": f"{options.model}, {sum(p.numel() for p in net.parameters()):,} parameters", "loss": "CE", **step,
    })
    phase = Phase(
        "train", net, LiveTeacher(net, objective.reads), objective, sgd(net.parameters(), options),
        rates(options), options.epochs, {"student": net, "objective": objective}, precision=precision,
        captured=captured)
    test = data.test_images(device)
    fit(phase, data.train_views(device), test, run, options)
    run.finish(phase, by_class(net, test, data, precision))
    run.report()


def folder_name(o) -> str:
    """The published name of a teacher's folder."""
    return f"{o.model}_{dataset.title(o)}_lr_{o.learning_rate}_decay_{o.weight_decay}_trial_{o.trial}"


if __name__ == "__main__":
    guarded(main)
