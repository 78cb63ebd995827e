"""What people run from the shell: every command line in it is one that the entry scripts take."""
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distiller_zoo import METHODS
from helper.cli import student_options, teacher_options
from helper.record.records import label
from models import model_dict
from tests.support import scripts
from tests.support.runs import write_run

SHELL = sorted((scripts.ROOT / "scripts").glob("*.sh"))


def students(name):
    """The flags of each `student ...` line of a shell script."""
    text = (scripts.ROOT / "scripts" / name).read_text()
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^student .*", text, re.M)]


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["sh", "-n", script], check=True)


def sh(script, *arguments, **environment):
    """The finished shell script, with this Python and no .venv."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(["sh", f"scripts/{script}", *arguments], cwd=scripts.ROOT, env=environment,
                          capture_output=True, text=True)


# Of table.sh's others, which only call it, one.
@pytest.mark.parametrize("script", [path.name for path in SHELL if path.name not in (
    "common.sh", "table.sh", "table_same.sh", "table_different.sh")])
def test_every_script_answers_help_and_dry_run_wherever_cd_looks(script, tmp_path):
    """CDPATH would send `cd scripts/..` to a folder of that name elsewhere."""
    (tmp_path / "elsewhere" / "scripts").mkdir(parents=True)
    before = sorted(path for path in scripts.ROOT.glob("*") if path.name != "__pycache__")
    for arguments in (["--help"], ["--dry_run"]):
        run = sh(script, *arguments, CDPATH=str(tmp_path / "elsewhere"), SAVE_DIR=str(tmp_path / "save"))
        assert run.returncode == 0 and run.stdout and not run.stderr, run.stderr
        assert "elsewhere" not in run.stdout  # cd prints where CDPATH has sent it
        assert ("--dry_run" in run.stdout) == (arguments == ["--help"])
    assert sorted(path for path in scripts.ROOT.glob("*") if path.name != "__pycache__") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "elsewhere"]


@pytest.mark.parametrize("script, argument, says", [
    ("quickstart.sh", "--nothing", "--nothing is not understood: see --help"),
    ("run_cifar_vanilla.sh", "resnet8", "resnet8 is not understood: see --help"),
    ("table.sh", "other", "say which table"), ("setup.sh", "nowhere.txt", "nowhere.txt: no such file"),
    ("table_same.sh", "--nothing", "--nothing")])
def test_other_arguments_are_refused(script, argument, says):
    run = sh(script, argument)
    assert run.returncode == 2 and says in run.stderr and run.stderr.count("\n") == 1


def test_run_cifar_distill_has_every_method_at_its_published_weights():
    run = sh("run_cifar_distill.sh", "--dry_run")
    lines = [shlex.split(line)[2:] for line in run.stdout.splitlines() if line.startswith("python train_student.py")]
    runs = [student_options(flags) for flags in lines]
    assert {run.distill for run in runs} == set(METHODS)
    assert {(run.path_t, run.model_s, run.trial, run.epochs) for run in runs} == {
        ("./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth", "resnet8x4", "1", 240)}
    found = {label(vars(run)): run for run in runs}
    for name, gamma, alpha, beta in (
            ("kd", 0.1, 0.9, 0), ("dkd", 1, 1, 8), ("nkd", 1, 0, 1.5), ("wttm", 1, 0.1, 3), ("fsp", 1, 0, 1),
            ("crd+KD", 1, 1, 0.8), ("kd+ls", 0.1, 9, 0), ("dkd+ls", 1, 9, 72),
            ("mlkd+ls", 0.1, 0, 9), ("ctkd", 0.1, 0.9, 0), ("mlkd", 0.1, 0, 0.9),
            ("reviewkd", 1, 0, 5), ("catkd", 1, 0, 15), ("norm", 0.1, 0, 1), ("ldrld", 1, 10.5, 7), ("sdd", 1, 1, 8)):
        assert (found[name].gamma, found[name].alpha, found[name].beta) == (gamma, alpha, beta), name
    assert {name for name, run in found.items() if run.avg > 0} == {"kd+IKD", "dkd+IKD"}
    assert (found["dkd+IKD"].avg, found["dkd+IKD"].intra_T) == (6.5, 1)


def test_run_cifar_distill_takes_overrides(tmp_path):
    teacher = tmp_path / "resnet20_mine" / "a.pth"
    teacher.parent.mkdir()
    torch.save({"model": model_dict["resnet20"](num_classes=10).state_dict()}, teacher)
    run = sh("run_cifar_distill.sh", "--dry_run", DATASET="digits", EPOCHS="4", STUDENT="resnet8", TRIAL="7",
             TEACHER=str(teacher), SAVE_DIR=str(tmp_path / "save"), FLAGS="--warm_up 0", METHODS="kd,dkd+IKD")
    assert run.returncode == 0, run.stderr
    runs = [student_options(shlex.split(line)[2:]) for line in run.stdout.splitlines() if line.startswith("python")]
    assert [(o.distill, o.model_s, o.dataset, o.epochs, o.warm_up, o.trial, o.path_t) for o in runs] == [
        (name, "resnet8", "digits", 4, 0, "7", str(teacher)) for name in ("kd", "dkd")]


def test_a_training_ends_with_the_script_that_started_it(tmp_path):
    """Killed, the script has no chance to stop it."""
    script = subprocess.Popen(
        ["sh", scripts.ROOT / "scripts" / "run_cifar_vanilla.sh"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "MODELS": "resnet8", "EPOCHS": "500",
                        "DATASET": "digits", "SAVE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1",
                        "FLAGS": "--imbalance 0.01"})
    for line in script.stdout:
        if line.startswith("train   2/500"):
            break
    training = int(Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text())
    assert b"train_teacher.py" in Path(f"/proc/{training}/cmdline").read_bytes()
    script.kill()
    script.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{training}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{training}").exists()
    assert list(tmp_path.glob("models/*/resume.pth"))  # it has saved


def test_quickstart_trains_the_five_students():
    runs = [student_options(["--path_t", "t", *flags]) for flags in students("quickstart.sh")]
    assert [(run.distill, run.alpha == 0, run.avg > 0) for run in runs] == [
        ("kd", True, False), ("kd", False, False), ("kd", False, True), ("dkd", False, False), ("dkd", False, True)]


def test_the_commands_of_the_readme_are_taken():
    commands = re.findall(r"python (train_\w+\.py) (.*)", (scripts.ROOT / "README.md").read_text())
    assert len(commands) >= 3
    for script, flags in commands:
        parse = {"train_student.py": student_options, "train_teacher.py": teacher_options}[script]
        if "--help" not in flags:
            parse(shlex.split(flags.split("`")[0]))


def test_run_cifar_vanilla_takes_overrides_and_continues_after_a_failure(tmp_path):
    run = sh("run_cifar_vanilla.sh", MODELS="nothing resnet8", DATASET="digits", EPOCHS="1", SAVE_DIR=str(tmp_path),
             FLAGS="--imbalance 0.01")
    assert run.returncode == 1 and run.stderr.strip().endswith("these failed, see above: nothing")
    assert (scripts.only(tmp_path / "models") / "result.json").exists()
    assert scripts.only(tmp_path / "models").name.startswith("resnet8_digits-imb0.01")


def test_without_a_python_the_set_up_says_which(tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "dirname", "cat"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    copy = tmp_path / "copy"
    shutil.copytree(scripts.ROOT / "scripts", copy / "scripts")
    shutil.copy(scripts.ROOT / "requirements.txt", copy)
    run = subprocess.run(["sh", copy / "scripts" / "quickstart.sh"], env={"PATH": str(tmp_path / "bin")},
                         capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert "Python 3.10, 3.11 or 3.12 is needed" in run.stderr and "PYTHON=" in run.stderr


def test_the_summary_has_a_line_for_each_student(tmp_path):
    for flags in ("--distill hint -a 1 --avg 1", "--distill kd -r 0.1 -a 0.9"):
        write_run(tmp_path, flags, [50.0, 70.0])
    table = scripts.succeed("scripts/summary.py", "--save_dir", tmp_path).stdout.splitlines()
    assert table[0].split() == ["pair", "method", "trial", "last", "best", "seconds"]
    assert [line.split() for line in table[2:]] == [["resnet56→resnet20", name, "1", "70.00", "70.00", "60.0"]
                                                    for name in ("kd", "hint+KD+IKD")]
    empty = scripts.run("scripts/summary.py", "--save_dir", tmp_path / "nothing")
    assert empty.returncode == 2 and empty.stderr.startswith("error: no finished student")
