"""Train a student on the labels and on a trained teacher's outputs, with or without the IKD term.

python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill kd \
    --model_s resnet8x4 -r 0.1 -a 0.9 -b 0 --trial 1
"""
import sys

import helper.util.start  # noqa: F401 (before PyTorch)

from helper import build, cli
from helper.device import open_device
from helper.evaluation import by_class
from helper.loop import fit
from helper.record.naming import STUDENT_FOLDERS, student_folder
from helper.record.run import open_record
from helper.teacher.plan import cached_teacher_accuracy, plan_teacher
from helper.util.errors import guarded


def main():
    options, notes = cli.parse_student(sys.argv[1:])
    device = open_device(options)
    data = build.load_data(options)
    teacher = build.load_teacher(options, data)
    trainee = build.make_student(options, data, teacher, device)

    decisions = build.decisions(options, data, device, trainee.precision, teacher)
    name = student_folder(options, teacher.name)
    record = open_record(options, STUDENT_FOLDERS, name, trainee.network, len(data.classes), decisions)
    if record.result is not None:
        return record.report()
    teaching = plan_teacher(options, teacher, data, trainee, device, record)
    views, test = data.train_views(device, "strong" in trainee.objective.reads), data.test_images(device)
    accuracy = cached_teacher_accuracy(teacher, data, test, teaching.precision, options.cache_dir)
    record.start(build.student_facts(options, data, trainee, teacher, accuracy, teaching, device),
                 decisions | {"teacher_source": teaching.kind},
                 [*notes, *build.teacher_notes(teacher, data, accuracy)])

    for phase in build.student_phases(options, trainee, teacher, teaching, views, record):
        fit(phase, test, record)
    record.finish(phase, {
        "teacher": teacher.name, "teacher_top1": accuracy.top1, "terms": list(trainee.objective.terms),
        **by_class(trainee.network, test, data, trainee.precision)})


if __name__ == "__main__":
    guarded(main)
