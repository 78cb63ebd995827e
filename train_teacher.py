"""Train a network with the labels alone: a teacher, or the baseline of a student.

python train_teacher.py --model wrn_40_2
"""
import sys

import helper.util.start  # noqa: F401 (before PyTorch)

from helper import build, cli
from helper.device import open_device
from helper.evaluation import by_class
from helper.loop import fit
from helper.record.naming import TEACHER_FOLDERS, teacher_folder
from helper.record.run import open_record
from helper.util.errors import guarded


def main():
    options, notes = cli.parse_teacher(sys.argv[1:])
    device = open_device(options)
    data = build.load_data(options)
    trainee = build.make_teacher(options, data, device)

    decisions = build.decisions(options, data, device, trainee.precision)
    name = teacher_folder(options)
    record = open_record(options, TEACHER_FOLDERS, name, trainee.network, len(data.classes), decisions)
    if record.result is not None:
        return record.report()
    record.start(build.teacher_facts(options, data, trainee, device), decisions, notes)

    phase, test = build.teacher_phase(options, trainee, data.train_views(device)), data.test_images(device)
    fit(phase, test, record)
    record.finish(phase, by_class(trainee.network, test, data, trainee.precision))


if __name__ == "__main__":
    guarded(main)
