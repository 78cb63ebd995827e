"""What people run from the shell: every command line in it is one that the entry scripts take."""
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distiller_zoo import METHODS
from helper.cli import student_options, teacher_options
from tests.support import scripts

SHELL = sorted((scripts.ROOT / "scripts").glob("*.sh"))


def students(name):
    """The flags of each `student ...` line of a shell script."""
    text = (scripts.ROOT / "scripts" / name).read_text()
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^student .*", text, re.M)]


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["sh", "-n", script], check=True)


def test_run_cifar_distill_has_every_method_at_its_published_weights():
    lines = students("run_cifar_distill.sh")
    runs = [student_options(["--path_t", "t", *flags]) for flags in lines]
    assert {run.distill for run in runs} == set(METHODS)
    for flags, run in zip(lines, runs, strict=True):
        # The first four have weights of their own for the pair.
        if run.distill not in ("kd", "dkd", "wttm", "catkd") and run.alpha == 0:
            assert run.beta == METHODS[run.distill].beta, flags
    assert any(run.distill == "crd" and run.alpha == 1 for run in runs)
    assert {run.distill for run in runs if run.avg > 0} == {"kd", "dkd"}


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


def test_run_cifar_vanilla_takes_overrides_and_goes_on_after_a_failure(tmp_path):
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"  # where there is no .venv
    environment = {"PATH": path, "MODELS": "nothing resnet8", "DATASET": "digits", "EPOCHS": "1",
                   "SAVE_DIR": str(tmp_path), "FLAGS": "--batch_size 256", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(["sh", scripts.ROOT / "scripts" / "run_cifar_vanilla.sh"], env=environment,
                         capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.strip().endswith("these failed, see above: nothing")
    assert (scripts.only(tmp_path / "models") / "result.json").exists()
    assert scripts.only(tmp_path / "models").name.startswith("resnet8_digits")


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


def test_the_summary_has_a_line_for_each_student(digits_teacher, tmp_path):
    for flags in ([], ["--distill", "hint", "-a", 1, "--avg", 1]):
        scripts.succeed("train_student.py", "--path_t", digits_teacher, "--dataset", "digits", "--epochs", 1,
                        "--batch_size", 256, "--save_dir", tmp_path, *flags)
    table = scripts.succeed("scripts/summary.py", "--save_dir", tmp_path).stdout.splitlines()
    assert table[0].split() == ["pair", "method", "trial", "last", "best", "seconds"]
    assert [line.split()[:2] for line in table[2:]] == [["resnet14→resnet8", "kd"], ["resnet14→resnet8", "hint+KD+IKD"]]
    empty = scripts.run("scripts/summary.py", "--save_dir", tmp_path / "nothing")
    assert empty.returncode == 2 and empty.stderr.startswith("error: no finished student")
