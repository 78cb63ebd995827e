"""Nothing is lost: files appear whole or not at all, and what cannot be written ends a run with one line."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import train_student
from helper.record.published import TEACHERS, teacher_warning
from helper.util.files import whole, write_json, write_torch
from models import model_dict
from tests.support import scripts

WRITER = """
import sys
sys.path.insert(0, {root!r})
import torch
from helper.util.files import write_torch
number = 0
while True:
    number += 1
    write_torch({path!r}, {{"number": torch.full((200_000,), float(number))}})
    print(number, flush=True)
"""


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path):
    path = tmp_path / "state.pth"
    script = tmp_path / "writer.py"
    script.write_text(WRITER.format(root=str(scripts.ROOT), path=str(path)))
    moments, numbers = random.Random(0), set()
    for _ in range(15):
        process = scripts.Process(str(script))
        process.until("1\n")
        time.sleep(moments.uniform(0, 0.1))
        process.signal(signal.SIGKILL)
        process.wait()
        number = torch.load(path, weights_only=True)["number"]
        assert (number == number[0]).all() and number[0] >= len(process.stdout.split()) - 1
        numbers.add(number[0].item())
    assert len(numbers) > 1


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(str(path), {"good": True})
    with pytest.raises(OSError, match="No space left"), whole(str(path)) as file, open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), file.fileno())
        file.write(b"lost")
    assert path.read_text() == '{\n  "good": true\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    write_torch(str(path), {"more": 1})
    assert torch.load(path, weights_only=True) == {"more": 1}


# Files of at most 400 kB, where resnet8's state takes more: what a full disk does.
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
sys.argv = sys.argv[1:]
sys.path.insert(0, {root!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_ends_the_run_with_one_line_and_the_last_state_intact(digits_teacher, tmp_path):
    flags = ("--path_t", digits_teacher, "--dataset", "digits", "--epochs", 4, "--batch_size", 128,
             "--save_dir", tmp_path / "save")
    process = scripts.Process("train_student.py", *flags)
    process.until("train 2/4")
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    folder = scripts.only(tmp_path / "save" / "student_model")
    before = torch.load(folder / "resume.pth", weights_only=True)

    script = tmp_path / "limited.py"
    script.write_text(LIMITED.format(root=str(scripts.ROOT)))
    full = scripts.run(str(script), "train_student.py", *flags)
    assert full.returncode == 1 and full.stderr.count("\n") == 1
    assert "File too large" in full.stderr and "the same command continues from what was saved before" in full.stderr
    after = torch.load(folder / "resume.pth", weights_only=True)
    assert after["epoch"] == before["epoch"] and not list(folder.glob("*.partial"))

    scripts.succeed("train_student.py", *flags)
    assert [line["epoch"] for line in scripts.read_log(folder)] == [1, 2, 3, 4]


def test_a_folder_that_vanishes_ends_the_run_with_one_line(digits_teacher, tmp_path):
    process = scripts.Process("train_student.py", "--path_t", digits_teacher, "--dataset", "digits", "--epochs", 50,
                              "--save_dir", tmp_path)
    process.until("train  1/50")
    shutil.rmtree(tmp_path / "student_model")
    assert process.wait() == 1
    assert process.stderr.count("\n") == 1 and ".lock was removed" in process.stderr


def test_a_signal_before_the_first_epoch_ends_with_one_line_too(digits_teacher, tmp_path):
    process = scripts.Process("train_student.py", "--path_t", digits_teacher, "--dataset", "digits",
                              "--save_dir", tmp_path, "--epochs", 50)
    process.until("student ")
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.count("\n") == 1 and "stopped by SIGINT" in process.stderr


@pytest.mark.parametrize("name, dataset, top1, warns", [
    ("resnet110", "cifar100", 70.27, True), ("resnet110", "cifar100", 74.31, False),
    ("resnet110", "cifar100", 73.82, False), ("resnet110", "cifar100", 73.80, True),
    ("resnet110", "cifar100", 74.90, True), ("resnet110", "digits", 70.27, False),
    ("resnet44", "cifar100", 20.0, False)])
def test_a_teacher_far_from_the_published_one_is_told(name, dataset, top1, warns):
    warning = teacher_warning(name, dataset, top1)
    assert (warning is not None) == warns
    if warns:
        assert f"tests at {top1:.2f}" in warning and f"{TEACHERS[name]:.2f}" in warning


def test_the_run_tells_it_once(cifar_server, tmp_path, monkeypatch, capsys):
    """With a small CIFAR-100 from a local server, and a teacher that knows nothing."""
    folder = tmp_path / "resnet56_vanilla"
    folder.mkdir()
    torch.save({"model": model_dict["resnet56"](num_classes=100).state_dict()}, folder / "ckpt_epoch_240.pth")
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(sys, "argv", [
        "train_student.py", "--path_t", str(folder / "ckpt_epoch_240.pth"), "--distill", "kd", "--epochs", "2",
        "--data_dir", str(tmp_path / "data"), "--save_dir", str(tmp_path / "save"), "--warm_up", "0"])
    try:
        train_student.main()
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    output = capsys.readouterr().out
    assert output.count("the published resnet56 at 72.34") == 1
    assert "cifar100, 200 training and 100 test images, 100 classes" in output
    assert len(scripts.read_log(scripts.only(tmp_path / "save" / "student_model"))) == 2


def test_processes_that_write_one_path_do_not_meet(tmp_path):
    """Each writes a name of its own beside the place, so that all succeed and the place is whole at any time."""
    path = tmp_path / "shared.json"
    code = ("import sys; from helper.util.files import write_json\n"
            "for i in range(60): write_json(sys.argv[1], {'number': [int(sys.argv[2])] * 2000})")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(i)], cwd=scripts.ROOT,
                                stderr=subprocess.PIPE, text=True) for i in range(4)]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            number = json.loads(path.read_text())["number"]
            assert len(number) == 2000 and len(set(number)) == 1
    assert [writer.wait() for writer in writers] == [0] * 4, [writer.stderr.read() for writer in writers]
    assert [entry.name for entry in tmp_path.iterdir()] == ["shared.json"]
