"""Train a network with the labels alone: a teacher, or the baseline of a student.

python train_teacher.py --model wrn_40_2
"""
import sys

import torch

import dataset
from helper import cli
from helper.cuda_graph import is_captured
from helper.evaluation import by_class
from helper.loop import LiveTeacher, Phase, fit, sgd
from helper.objective import CrossEntropy, Objective
from helper.record.run import open_run
from helper.schedule import rates
from helper.sync_bn import convert_sync_batchnorm
from helper.util import distributed
from helper.util.errors import guarded
from helper.util.seeding import derive_seed
from models import build
from models.precision import precision_of


def main():
    options = cli.teacher_options(sys.argv[1:])
    device = cli.device_of(options)
    with distributed.local_rank_zero_first():
        data = dataset.from_options(options)
    cli.check_shares(options, data)
    torch.manual_seed(derive_seed(options.seed, options.trial, "init"))
    network = build(options.model, len(data.classes))
    with torch.no_grad():
        network.eval()(torch.zeros(1, *data.image_shape))  # a network that does not take these images refuses here
    if options.sync_bn:
        convert_sync_batchnorm(network, device)
    network.to(device)
    objective = Objective({"ce": CrossEntropy()})
    precision = precision_of(options, device)
    captured, step = is_captured(options.cuda_graph, objective, device)

    run = open_run(options, ("models", "tensorboard"), folder_name(options), network, data)
    if run.result is not None:
        return run.report()
    precision.prepare(network)
    run.start(device, precision, {
        "model": f"{options.model}, {sum(p.numel() for p in network.parameters()):,} parameters", "loss": "CE", **step,
    })
    phase = Phase(
        "train", network, LiveTeacher(network, objective.reads), objective, sgd(network.parameters(), options),
        rates(options), options.epochs, {"student": network, "objective": objective}, precision=precision,
        captured=captured)
    test = data.test_images(device)
    fit(phase, data.train_views(device), test, run, options)
    run.finish(phase, by_class(network, test, data, precision))
    run.report()


def folder_name(o) -> str:
    """The published name of a teacher's folder."""
    return f"{o.model}_{dataset.title(o)}_lr_{o.learning_rate}_decay_{o.weight_decay}_trial_{o.trial}"


if __name__ == "__main__":
    guarded(main)
