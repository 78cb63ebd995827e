"""Several trials together: each as it would be alone."""
import signal

import pytest

from helper.errors import UsageError
from helper.trials import share, spread, without
from tests import scripts
from tests.test_resume import assert_same, record

FLAGS = ("--dataset", "digits", "--model_s", "resnet8", "--epochs", 3, "--batch_size", 128, "--warm_up", 0,
         "--lr_decay_epochs", "", "--avg", 1, "--teacher_cache", "auto", "--cache_dtype", "float32")


def test_stopped_and_gone_on_with_each_trial_ends_as_it_would_alone(digits_teacher, tmp_path):
    flags = ("--path_t", digits_teacher, *FLAGS)
    together = ("train_student.py", *flags, "--trials", "1,two", "--save_dir", tmp_path / "together",
                "--cache_dir", tmp_path / "cache")
    process = scripts.Process(*together)
    process.until("train 1/3")
    process.signal(signal.SIGTERM)
    assert process.wait() == 143 and "stopped by SIGTERM" in process.stderr
    process = scripts.succeed(*together)
    assert "trials    1, two: " in process.stdout and "1 thread each" in process.stdout
    assert process.stdout.count("data      digits") == 1 and "2 trials: test accuracy last " in process.stdout

    scripts.succeed("train_student.py", *flags, "--trial", "two", "--save_dir", tmp_path / "alone",
                    "--cache_dir", tmp_path / "alone")
    alone, = (tmp_path / "alone" / "student_model").iterdir()
    other, two = sorted((tmp_path / "together" / "student_model").iterdir())
    assert two.name == alone.name and other.name == alone.name.replace("_two", "_1")
    assert_same(record(two), record(alone))
    assert record(other)[1] != record(two)[1]


def test_a_trial_that_fails_is_named_and_stops_no_other(digits_teacher, tmp_path):
    flags = ("train_student.py", "--path_t", digits_teacher, *FLAGS[:-4], "--save_dir", tmp_path)
    scripts.succeed(*flags, "--epochs", 1, "--trial", "b", "--seed", 7)  # another setting in the folder of b
    process = scripts.run(*flags, "--epochs", 1, "--trials", "b,c")
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "trial b of b, c failed" in process.stderr and "[b] error: " in process.stdout
    assert "holds a run with other settings" in process.stdout
    finished = {path.parent.name[-2:] for path in tmp_path.glob("student_model/*/result.json")}
    assert finished == {"_b", "_c"}


@pytest.mark.parametrize("argv, message", [
    (["--trials", "1,1"], "names a trial twice"), (["--trials", "1,"], "cannot end a folder's name"),
    (["--trials", "1", "--trial", "2"], "not allowed with"),
])
def test_trials_that_cannot_be(argv, message):
    from helper.cli import student_options
    with pytest.raises(UsageError, match=message):
        student_options(["--path_t", "t", *argv])


def test_command_of_a_trial():
    argv = ["train_student.py", "--trials", "1,2", "--epochs", "3"]
    assert without(argv, "--trials") == ["train_student.py", "--epochs", "3"]
    assert without(["x", "--trials=1,2", "--trial_like", "4"], "--trials") == ["x", "--trial_like", "4"]


def test_share_of_the_machine(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [share(n, "cpu") for n in (1, 2, 3, 8, 20)] == [(1, 8), (2, 4), (3, 2), (8, 1), (8, 1)]
    assert share(20, "cuda") == (20, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert share(2, "cpu") == (2, 3)


def test_spread_is_mean_and_sample_deviation():
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00" and spread([70.123]) == "70.12"
