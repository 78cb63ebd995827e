"""Folders of students' runs such as helper/record/run.py writes them, without training."""
import json

from helper.cli import student_options
from helper.record.naming import scalars_folder, student_folder


def write_run(save, flags, tops, teacher="resnet56", teacher_top1=72.34, finished=True, student="resnet20", args=(),
              **settings):
    """A run's folder: what train_student.py with these flags would leave, with these test accuracies by epoch.

    args: what else args.json holds; settings: instead of the resolved ones
    """
    options = student_options(["--path_t", f"save/models/{teacher}_vanilla/ckpt_epoch_240.pth", "--model_s", student,
                               "--epochs", str(len(tops)), *flags.split()])
    held = vars(options) | {"device": "cpu", "amp": "none", "teacher_source": "live"} | settings
    folder = save / "student_model" / student_folder(options, teacher)
    folder.mkdir(parents=True)
    best = max(range(len(tops)), key=lambda i: tops[i])
    (folder / "args.json").write_text(json.dumps({
        "settings": held, "facts": {"teacher": f"{teacher}, 861,620 parameters, test accuracy {teacher_top1}"},
        "command": f"python train_student.py {flags}", "commit": "0" * 40,
        "versions": {"python": "3.11", "torch": "2.11.0"}, "started": "2026-01-01T00:00:00+0000"} | dict(args)))
    (folder / "log.jsonl").write_text("".join(
        json.dumps({"phase": "train", "epoch": i + 1, "test_top1": top1}) + "\n" for i, top1 in enumerate(tops)))
    if finished:
        (folder / "result.json").write_text(json.dumps({
            "last": {"epoch": len(tops), "top1": tops[-1], "top5": 90.0},
            "best": {"epoch": best + 1, "top1": tops[best], "top5": 90.0}, "seconds": 60.0, "teacher": teacher,
            "teacher_top1": teacher_top1, "terms": ["ce"]}))
    (save / "student_tensorboards" / scalars_folder(folder.name, vars(options))).mkdir(parents=True)
    return folder
