"""A run's record: who may write it, what it is compared by, and that damage is noticed."""
import hashlib
import json
import os
import shutil
import signal

import pytest
import torch

from helper.cli import parse_student
from helper.record.folder import RunFolder
from helper.record.run import RunRecord
from helper.util.errors import RunError, UsageError
from models import model_dict
from tests.support import scripts

FLAGS = ("--dataset", "digits", "--imbalance", 0.02, "--batch_size", 64, "--warm_up", 0, "--epochs", 40)


def test_a_folder_whose_lock_is_removed_or_replaced_is_no_longer_written(tmp_path):
    """Otherwise a second process trains there meanwhile: settings of one run, results of another."""
    folder = RunFolder(str(tmp_path / "run"))
    folder.write("args.json", {"settings": {}})
    os.remove(folder / ".lock")
    second = RunFolder(str(tmp_path / "run"))
    for write in (lambda: folder.write("args.json", {"mine": 1}), lambda: folder.write("log.jsonl", b""),
                  lambda: folder.write("resume.pth", {}), lambda: folder.remove("args.json")):
        with pytest.raises(RunError, match=r"\.lock was removed or replaced"):
            write()
    assert second.read_json("args.json") == {"settings": {}}
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match=r"\.lock was removed"):
        second.write("args.json", {})


@pytest.mark.parametrize("name", ["resume.pth", "args.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\x80\x02", b"\x80\x02e", b"\x80\x02J",
                                     pytest.param(b"[" * 100_000, id="deep")])
def test_damaged_but_readable_files_are_named(name, content, tmp_path):
    folder = RunFolder(str(tmp_path))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name} is damaged: bring it back .* --overwrite"):
        folder.read_torch(name) if name.endswith(".pth") else folder.read_json(name)


def test_every_flipped_bit_of_a_state_is_noticed(tmp_path):
    folder = RunFolder(str(tmp_path))
    state = {"student": torch.arange(64.0), "epoch": 3}
    folder.write("resume.pth", state)
    whole = (tmp_path / "resume.pth").read_bytes()
    start = whole.index(torch.arange(64.0).numpy().tobytes())
    for byte in range(start, start + 256, 17):
        (tmp_path / "resume.pth").write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        with pytest.raises(UsageError, match=r"resume\.pth is damaged"):
            folder.read_torch("resume.pth")
    (tmp_path / "resume.pth").write_bytes(whole)
    assert torch.equal(folder.read_torch("resume.pth")["student"], state["student"])


def unfinished(tmp_path, decisions):
    """The folder of a run that has begun with these decisions."""
    options, _ = parse_student(["--path_t", "t.pth", "--save_dir", str(tmp_path)])
    record = RunRecord(options, ("runs", "scalars"), "name", model_dict["resnet8"](num_classes=10), 10, decisions)
    record.start({}, decisions, [])
    record.folder.write("resume.pth", {"phase": "train", "epoch": 1, "done": []})
    record.folder.lock.close()
    return record.folder


def resumed(tmp_path, decisions, *flags):
    options, _ = parse_student(["--path_t", "t.pth", "--save_dir", str(tmp_path), *flags])
    record = RunRecord(options, ("runs", "scalars"), "name", model_dict["resnet8"](num_classes=10), 10, decisions)
    record.folder.lock.close()
    return record


DECISIONS = {"device": "cpu", "processes": 1, "teacher_sha256": "a" * 64}


def test_the_same_teacher_spelled_another_way_is_the_same_and_another_under_its_name_is_not(tmp_path):
    unfinished(tmp_path, DECISIONS)
    assert resumed(tmp_path, DECISIONS, "--path_t", "./there/../t.pth").earlier.state["epoch"] == 1
    with pytest.raises(UsageError, match=r"teacher_sha256 a+ there, b+ now\): give another --save_dir, or --overwrite"):
        resumed(tmp_path, DECISIONS | {"teacher_sha256": "b" * 64})
    with pytest.raises(UsageError, match=r"--avg 0\.0 there, 2\.0 now"):
        resumed(tmp_path, DECISIONS, "--avg", "2")


def test_a_state_without_its_settings_is_refused(tmp_path):
    folder = unfinished(tmp_path, DECISIONS)
    os.remove(folder / "args.json")
    with pytest.raises(UsageError, match=r"without its args\.json"):
        resumed(tmp_path, DECISIONS)


def test_a_run_of_the_code_before_is_refused_in_one_line(tmp_path):
    folder = unfinished(tmp_path, DECISIONS)
    args = folder.read_json("args.json")
    del args["decisions"]
    (tmp_path / "runs/name/args.json").write_text(json.dumps(args))
    with pytest.raises(UsageError, match="a run of an earlier version of this code: give another --save_dir"):
        resumed(tmp_path, DECISIONS)


def test_a_run_is_repeated_from_its_record_and_given_flags_win(tmp_path):
    folder = unfinished(tmp_path, DECISIONS)
    given = ["--config", folder / "args.json"]
    first, _ = parse_student(["--path_t", "t.pth", "--save_dir", str(tmp_path)])
    assert vars(parse_student(given)[0]) == vars(first)
    again, _ = parse_student([*given, "--avg", "3", "--lr_decay_epochs", "5,7"])
    assert (again.avg, again.lr_decay_epochs, again.path_t) == (3, [5, 7], "t.pth")
    # In the precision that --fast came to there, on another machine too.
    args = folder.read_json("args.json")
    (tmp_path / "fast.json").write_text(json.dumps({"settings": args["settings"] | {"amp": "auto", "fast": True},
                                                    "decisions": {"amp": "bf16"}}))
    fast = ["--config", str(tmp_path / "fast.json")]
    assert parse_student(fast)[0].amp == "bf16" and parse_student([*fast, "--amp", "none"])[0].amp == "none"
    with pytest.raises(UsageError, match=r"--config .*none\.json cannot be read as an args.json"):
        parse_student(["--config", str(tmp_path / "none.json")])


def test_args_tell_the_machine_and_the_teachers_file(digits_teacher, tmp_path):
    process = scripts.Process("train_student.py", "--path_t", digits_teacher, *FLAGS, "--save_dir", tmp_path)
    process.until("train  1/40")
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    args = json.loads((scripts.only(tmp_path / "student_model") / "args.json").read_text())
    assert args["host"] and args["facts"]["device"].startswith("cpu, ") and args["facts"]["device"].count(",") == 2
    assert args["decisions"]["teacher_sha256"] == hashlib.sha256(digits_teacher.read_bytes()).hexdigest()
    assert args["decisions"]["teacher"] == "resnet14"
