"""A run that was stopped in any way and started again ends bit-identical to one that never stopped."""
import json
import random
import signal
import time

import pytest
import torch

import distiller_zoo
from tests.support import scripts

# --imbalance leaves two images of a class at least, and less than a third of all.
FAST = ("--dataset", "digits", "--imbalance", 0.02, "--model_s", "resnet8", "--epochs", 4, "--warm_up", 2,
        "--lr_decay_epochs", "3", "--batch_size", 64, "--save_freq", 2)
# The flags, and how many kills.
METHODS = {
    "kd+IKD": (4, "--distill", "kd", "-r", 0.1, "-a", 0.9, "--avg", 1),
    "crd": (2, "--distill", "crd", "--nce_k", 128, "--avg", 1),
    "factor": (2, "--distill", "factor", "--init_epochs", 2),
    "wkd": (1, "--distill", "wkd", "--wkd", "lf", "--wkd_decay", 2),
    "kd+dot": (1, "--distill", "kd", "--optimizer", "dot"),
}
# The others, and their variants, killed once.
OTHERS = {name: (1, "--distill", name, "--avg", 1, "--init_epochs", 2)
          for name in distiller_zoo.METHODS if name not in ("kd", "crd", "factor", "wkd")}
OTHERS |= {" ".join(flags[1:]): (1, *flags, "--avg", 1) for flags in (
    ("--distill", "kd", "--logit_std", "on"), ("--distill", "kd", "--second_view", "on"),
    ("--distill", "sdd", "--sdd", "kd"), ("--distill", "wkd", "--wkd", "l"), ("--distill", "wkd", "--wkd", "f"))}
TIMES = ("seconds", "images_per_second")


def record(folder):
    """All that a run leaves, without its times: tensors by file, log lines, result."""
    tensors = {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.pth")}
    lines = [{key: value for key, value in line.items() if key not in TIMES} for line in scripts.read_log(folder)]
    result = json.loads((folder / "result.json").read_text())
    return tensors, lines, {key: value for key, value in result.items() if key not in TIMES}


def assert_same(a, b, where=""):
    """Equal to the last bit, whatever is nested in what."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


@pytest.mark.parametrize("name", [*METHODS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(name, digits_teacher, tmp_path):
    wanted, *own = (METHODS | OTHERS)[name]
    flags = ("--path_t", digits_teacher, *FAST, *own)
    started = time.monotonic()
    scripts.succeed("train_student.py", *flags, "--save_dir", tmp_path / "whole")
    length = time.monotonic() - started
    moments = random.Random(name)
    kills = rounds = 0
    while kills < wanted:  # a round ends when a process has run to the end before its kill
        rounds += 1
        save = tmp_path / f"killed{rounds}"
        while True:
            process = scripts.Process("train_student.py", *flags, "--save_dir", save)
            how = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT][kills % 4]
            if kills < wanted:
                time.sleep(moments.uniform(0.05, 0.4) * length)
                process.signal(how)
            code = process.wait()
            assert process.stderr.count("\n") <= 1 and "Traceback" not in process.stderr
            if code == 0:
                break
            assert code in ({-signal.SIGKILL} if how == signal.SIGKILL else {-how, 128 + how}), process.stderr
            kills += 1
        whole, killed = (scripts.only(folder / "student_model") for folder in (tmp_path / "whole", save))
        assert_same(record(whole), record(killed))
        assert {path.name for path in whole.iterdir()} == {path.name for path in killed.iterdir()}


def test_a_signal_saves_the_last_finished_epoch_and_says_so(digits_teacher, tmp_path):
    flags = ("--path_t", digits_teacher, *FAST, "--epochs", 50, "--save_dir", tmp_path)
    process = scripts.Process("train_student.py", *flags)
    process.until("train  2/50")
    process.signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert process.stderr == "error: stopped by SIGTERM; the same command continues from the last finished epoch\n"
    folder = scripts.only(tmp_path / "student_model")
    held = torch.load(folder / "resume.pth", weights_only=True)
    assert held["epoch"] == len(scripts.read_log(folder)) >= 2

    refused = scripts.run("train_student.py", *flags, "--resume", "never")
    assert refused.returncode == 2 and "unfinished run" in refused.stderr
    changed = scripts.run("train_student.py", *flags, "--weight_decay", 0.1)
    assert changed.returncode == 2 and "--weight_decay 0.0005 there, 0.1 now" in changed.stderr

    afresh = scripts.Process("train_student.py", *flags, "--overwrite")
    afresh.until("train  1/50")
    afresh.signal(signal.SIGKILL)
    afresh.wait()
    assert "continuing" not in afresh.stdout and len(scripts.read_log(folder)) <= 2


@pytest.mark.parametrize("name", ["resume.pth", "args.json"])
def test_a_damaged_file_of_the_run_is_named(name, digits_teacher, tmp_path):
    flags = ("--path_t", digits_teacher, *FAST, "--epochs", 50, "--save_dir", tmp_path)
    process = scripts.Process("train_student.py", *flags)
    process.until("train  1/50")
    process.signal(signal.SIGTERM)
    process.wait()
    path = scripts.only(tmp_path / "student_model") / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4  # one bit, amid the weights
    for damaged in [whole[:-40], *([flipped] if name == "resume.pth" else [])]:
        path.write_bytes(damaged)
        refused = scripts.run("train_student.py", *flags)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert f"{name} is damaged" in refused.stderr and "--overwrite" in refused.stderr


def test_a_second_process_on_the_same_folder_refuses(digits_teacher, tmp_path):
    flags = ("--path_t", digits_teacher, *FAST, "--epochs", 50, "--save_dir", tmp_path)
    first = scripts.Process("train_student.py", *flags)
    first.until("train  1/50")
    second = scripts.run("train_student.py", *flags)
    assert second.returncode == 2 and "another process is training in" in second.stderr
    first.signal(signal.SIGKILL)
    first.wait()
    assert scripts.read_log(scripts.only(tmp_path / "student_model"))


def test_same_seed_same_bits_and_other_trials_other_streams(digits_teacher, tmp_path):
    flags = ("--path_t", digits_teacher, *FAST, "--epochs", 2, "--save_freq", 50, *METHODS["kd+IKD"][1:])
    for save, *more in [("a",), ("b", "--num_workers", 0, "--print_freq", 1), ("c", "--trial", 2), ("d", "--seed", 1)]:
        scripts.succeed("train_student.py", *flags, "--save_dir", tmp_path / save, *more)
    a, b, c, d = (record(scripts.only(tmp_path / save / "student_model")) for save in "abcd")
    assert_same(a, b)
    for other in (c, d):
        assert other[1][0]["loss"] != a[1][0]["loss"]
    assert c[1][0]["loss"] != d[1][0]["loss"]
