"""What the tests of tables share."""
import json
import shlex
import signal

import pytest
import torch

from helper.cli import student_options, teacher_options
from helper.util.stop import StopRequest
from models import model_dict
from scripts.tables.plan import Job
from tests.support.tables import reproduce

# Leaves the files that train_student.py leaves.
RUN = """
import json, os, signal, sys, time
folder, plan = sys.argv[1], json.loads(sys.argv[2])
os.makedirs(folder, exist_ok=True)
import fcntl
lock = open(os.path.join(folder, ".lock"), "a+")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
log = os.path.join(folder, "log.jsonl")
done = len(open(log).readlines()) if os.path.exists(log) else 0
print("threads", os.environ.get("OMP_NUM_THREADS"), "gpu", os.environ.get("CUDA_VISIBLE_DEVICES"), "after", done)
if os.path.exists(plan.get("fails_with", "")):
    sys.exit("error: " + open(plan["fails_with"]).read())
for epoch in range(done + 1, plan["epochs"] + 1):
    time.sleep(plan["seconds"])
    with open(log, "a") as file:
        print(json.dumps({"phase": "train", "epoch": epoch, "test_top1": 50.0 + epoch}), file=file)
    if stop:
        sys.exit(143)
accuracies = {"epoch": plan["epochs"], "top5": 9.0}
result = {"last": accuracies | {"top1": 1.0}, "best": accuracies | {"top1": 2.0}, "seconds": 3.0, "teacher_top1": 1.0}
with open(os.path.join(folder, "result.json"), "w") as file:
    json.dump(result, file)
"""


@pytest.fixture
def dry_run(capsys):
    """Flags -> the command lines that are printed, as (script, parsed options), and the comments."""
    parse = {"train_student.py": student_options, "train_teacher.py": teacher_options}

    def run(*flags):
        reproduce(*flags, "--dry_run")
        lines = capsys.readouterr().out.splitlines()
        commands = [shlex.split(line)[1:] for line in lines if not line.startswith("#")]
        return ([(script, parse.get(script, list)(argv)) for script, *argv in commands],
                [line for line in lines if line.startswith("#")])

    return run


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Checkpoints of untrained networks for the digits, as various scripts leave them."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, model, classes in (
            ("resnet14_digits_trial_0/resnet14_last.pth", "resnet14", 10), ("digits_resnet20.pth", "resnet20", 10),
            ("resnet8_a/resnet8_last.pth", "resnet8", 10), ("resnet8_b/resnet8_last.pth", "resnet8", 10),
            ("resnet32_vanilla/ckpt_epoch_240.pth", "resnet32", 100)):
        (folder / name).parent.mkdir(exist_ok=True)
        torch.save({"model": model_dict[model](num_classes=classes).state_dict()}, folder / name)
    return folder


@pytest.fixture
def small(tmp_path):
    """(name, epochs=2, seconds=0.02, ...) -> a job of a run that takes no time."""
    (tmp_path / "run.py").write_text(RUN)

    def job(name, needs=None, **plan):
        plan = {"epochs": 2, "seconds": 0.02} | plan
        folder = str(tmp_path / "runs" / name)
        return Job(name, folder, (str(tmp_path / "run.py"), folder, json.dumps(plan)), plan["epochs"], {"model": name},
                   needs=needs, pairs=() if needs is None and name == "teacher" else ("a->b",), method=name, trial="1")

    return job


@pytest.fixture
def stop():
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    yield StopRequest()
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
