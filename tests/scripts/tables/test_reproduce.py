"""reproduce.py as a command: what it refuses, and a table from its runs to its report."""
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helper.record.naming import scalars_folder
from helper.record.records import read_records
from scripts.tables.plan import plan
from scripts.tables.runner import held
from tests.support import scripts
from tests.support.tables import GOOD, flat, options_of, reproduce, wait_for


def test_a_tables_script_takes_overrides():
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "EPOCHS": "24", "TRIALS": "1", "AVG": "2,3",
                   "SAVE_DIR": "elsewhere", "FLAGS": "--fast --seed 3", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(["sh", scripts.ROOT / "scripts" / "table_ikd.sh", "--dry_run"], env=environment,
                         capture_output=True, text=True, check=True)
    lines = [line for line in run.stdout.splitlines() if "train_student.py" in line]
    assert len(lines) == 1 + 2 * 3
    assert all("--epochs 24 --lr_decay_epochs 15,18,21 --warm_up 2" in line and line.endswith("--fast --seed 3")
               and "--save_dir elsewhere" in line for line in lines)
    assert {float(line.split("--avg ")[1].split()[0]) for line in lines[1:]} == {2, 3}


@pytest.mark.parametrize("flags, says", [
    ({"--pairs": "resnet14"}, "'resnet14' is not a pair such as resnet56:resnet20"),
    ({"--pairs": "resnet14:resnet9"}, "is not a pair"),
    ({"--methods": "kd,nothing"}, "'nothing' is not a method: give ce, kd+ls, dkd+ls, mlkd+ls, kd+view, "
                                   "kd+dot, sdd-kd, wkd-f, wkd-lf or one of abound"),
    ({"--pairs": "nowhere.pth:resnet8"}, "nowhere.pth"),
    ({"--methods": "dkd+IKD+KD"}, "is not a method"),
    ({"--methods": "dkd+KD"}, "'dkd+KD': KD can be added to abound, attention"),
    ({"--trials": "a/b"}, "cannot end a folder's name"),
    ({"--grid": "kd_T"}, "'kd_T' is not a grid such as"),
    ({"--grid": "kd_T=2 kd_T=3"}, "is not a grid such as"),
    ({"--grid": "kd_T=-1"}, "'-1' is not a number above 0"),
    ({"--grid": "epochs=1,2"}, "epochs is set by the table: use --epochs"),
    ({"--grid": "nothing=1"}, "--nothing"),
    ({"--grid": "avg=1,2"}, "--grid: no method of this table reads avg"),
    ({"--grid": "seed=1,2", "--flags": "--seed 3"}, "--flags and --grid both set seed"),
    ({"--epochs": "0"}, "'0' is not an integer of 1 or more"),
    ({"--flags": "--trial 4"}, "--flags cannot hold --trial, which the table sets: use --trials"),
    ({"--flags": "-a0.5"}, "--flags cannot hold -a, which the table sets: use --methods and --grid"),
    ({"--flags": "--epoch 4"}, "did you mean --epochs"),
    ({"--teachers": "fetch"}, "no teacher resnet14 is published"),
    ({"--teachers": "fetch", "--pairs": "resnet56:resnet8"}, "the published teachers are of cifar100"),
    ({"--teachers": "nowhere.pth"}, "nowhere.pth does not exist"),
    ({"--teachers": "{teachers}", "--pairs": "resnet8:resnet8"}, "holds several checkpoints of resnet8: give"),
    ({"--teachers": "{teachers}", "--pairs": "resnet56:resnet8"}, "holds no checkpoint of resnet56"),
    ({"--teachers": "{teachers}/digits_resnet20.pth"}, "is a resnet20, not a resnet14"),
    ({"--teachers": "{teachers}", "--pairs": "resnet32:resnet8"}, "is a teacher of 100 classes, digits has 10"),
    ({"--teachers": "resnet20=x.pth"}, "--teachers says nothing of resnet14"),
    ({"--time": "soon"}, "'soon' is not a time such as"),
    ({"--methods": None}, "say which table: --table same|different|ikd|methods, or --pairs and --methods"),
    ({"--nothing": "1"}, "unrecognized arguments: --nothing")])
def test_bad_input_is_refused_before_any_work(flags, says, teachers, tmp_path, capsys):
    flags = {key: value.format(teachers=teachers) if value else value for key, value in flags.items()}
    given = {"--teachers": "train"} | GOOD | {"--save_dir": str(tmp_path / "save")} | flags
    with pytest.raises(ValueError, match=re.escape(says)):  # what guarded makes one line and exit code 2 of
        reproduce(*flat({key: value for key, value in given.items() if value}))
    assert capsys.readouterr().out == "" and not (tmp_path / "save").exists()


def test_a_run_with_a_damaged_result_is_tried_and_fails_with_the_reason(teachers, tmp_path):
    """Not counted as done, and not overwritten: train_student.py says what is damaged."""
    flags = (*flat(GOOD | {"--teachers": str(teachers)}), "--save_dir", str(tmp_path))
    (job,) = plan(options_of(*flags)).students
    os.makedirs(job.folder)
    result = Path(job.folder, "result.json")
    result.write_text("{")
    process = scripts.run("scripts/reproduce.py", *flags)
    assert process.returncode == 1 and "0 done before" in process.stdout
    assert f"{result} is damaged" in process.stdout and result.read_text() == "{"
    assert "failed: " in (tmp_path / "report" / "report.md").read_text()


# --- the whole, once ---


def test_a_table_of_the_digits_from_one_command(teachers, tmp_path):
    flags = (*flat(GOOD | {"--teachers": teachers}), "--epochs", 1, "--flags", "--batch_size 256 --imbalance 0.05",
             "--save_dir", tmp_path)
    run = scripts.succeed("scripts/reproduce.py", *flags)
    assert "1 runs: 0 teachers, 1 students; 0 done before" in run.stdout and "1 of 1 runs are done" in run.stdout
    assert "train 1/1" not in run.stdout  # it is in the log
    assert "train 1/1" in scripts.only(tmp_path / "logs", "*.log").read_text()
    (record,), faults = read_records(tmp_path)
    assert faults == [] and (record.pair, record.method, record.trial) == ("resnet14->resnet8", "kd", "1")
    assert record.settings["cache_dir"] == str(tmp_path / "teacher_cache")
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"| kd | 1 | {record.result['last']['top1']:.2f} |" in text and "no reproduction" in text
    assert list((tmp_path / "student_tensorboards" / scalars_folder(record.name, record.settings)).glob("*.hparams"))
    again = scripts.succeed("scripts/reproduce.py", *flags)
    assert "1 done before" in again.stdout and "at a time" not in again.stdout
    other = scripts.run("scripts/reproduce.py", *flags, "--epochs", 2)
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert "holds a run with other settings (--epochs 1 there, 2 now" in other.stderr


def test_two_commands_at_once_make_one_table(teachers, tmp_path):
    """Each run is trained once, by one of them, and both report on all."""
    flags = (*flat(GOOD | {"--teachers": teachers, "--methods": "ce,kd"}), "--epochs", 1, "--jobs", 1, "--flags",
             "--batch_size 256 --imbalance 0.05", "--save_dir", tmp_path)
    both = [scripts.Process("scripts/reproduce.py", *flags) for _ in range(2)]
    for process in both:
        assert process.wait() == 0, process.stdout + process.stderr
        assert process.stderr == "" and "2 of 2 runs are done" in process.stdout
    logs = [path.read_text() for path in (tmp_path / "logs").iterdir()]
    assert len(logs) == 2 and all(log.count("train 1/1") == 1 for log in logs)
    assert json.loads((tmp_path / "report" / "table.json").read_text())["runs"]
    assert "| kd | 1 |" in (tmp_path / "report" / "report.md").read_text()
    assert not list(tmp_path.rglob("*.partial"))


def test_the_runs_of_a_killed_table_end_with_it(teachers, tmp_path):
    table = scripts.Process("scripts/reproduce.py", *flat(GOOD | {"--teachers": teachers}), "--epochs", 60, "--jobs", 1,
                            "--flags", "--batch_size 256 --imbalance 0.05", "--save_dir", tmp_path)
    runs = tmp_path / "student_model"
    wait_for(lambda: list(runs.glob("*/resume.pth")), 200)
    table.signal(signal.SIGKILL)
    assert table.wait() == -signal.SIGKILL
    wait_for(lambda: "stopped by SIGTERM; the same command continues" in scripts.only(tmp_path / "logs").read_text())
    wait_for(lambda: not held(str(scripts.only(runs))))
