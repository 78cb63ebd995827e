"""Reading run folders: what a record says of itself, and damaged ones, which stop no other."""
import os
import shutil

import pytest

from helper.cli import student_options
from helper.record.records import label, read_records, read_result, read_run
from helper.util.errors import UsageError
from tests.support.runs import write_run

KD = "--distill kd -r 0.1 -a 0.9"


@pytest.mark.parametrize("flags, name", [
    ("--distill kd -r 1 -a 0", "ce"), ("--distill kd -r 1 -a 0 --avg 2", "ce+IKD"), (KD, "kd"),
    ("--distill dkd -r 1 -a 1 -b 2 --avg 6.5", "dkd+IKD"), ("--distill crd -a 1 -b 0.8", "crd+KD"),
    ("--distill hint -a 1 --avg 1", "hint+KD+IKD"), ("--distill abound", "abound"), ("--distill nkd", "nkd"),
    ("--distill wttm", "wttm")])
def test_a_run_is_named_by_its_loss(flags, name):
    assert label(vars(student_options(["--path_t", "t", *flags.split()]))) == name


@pytest.mark.parametrize("finished, args", [
    (True, {}), (False, {}), (False, {"decisions": {"teacher": "resnet56", "teacher_sha256": "a" * 64}, "facts": {}})])
def test_the_teachers_name_is_the_recorded_one(tmp_path, finished, args):
    """Not what stands in the folder's name before the data set, whose title may hold more than its name."""
    for trial in "12":
        write_run(tmp_path, f"{KD} --imbalance 0.1 --label_noise 0.2 --trial {trial}", [50.0, 60.0], finished=finished,
                  args=args)
    records, faults = read_records(tmp_path)
    assert faults == [] and [record.pair for record in records] == ["resnet56->resnet20"] * 2
    assert records[0].identity == records[1].identity


def test_the_same_teacher_spelled_another_way_is_the_same(tmp_path):
    for trial, path in (("1", "save/t.pth"), ("2", "./save/t.pth")):
        write_run(tmp_path, f"{KD} --trial {trial}", [50.0], path_t=path,
                  args={"decisions": {"teacher_sha256": "b" * 64}})
    first, second = read_records(tmp_path)[0]
    assert first.identity == second.identity and first.identity["teacher_checkpoint"] == "b" * 12


def test_labels_alone_have_no_teacher_in_their_identity(tmp_path):
    for teacher in ("resnet56", "resnet110"):
        write_run(tmp_path, "--distill kd -r 1 -a 0", [50.0], teacher=teacher, path_t=teacher)
        write_run(tmp_path, KD, [50.0], teacher=teacher, path_t=teacher)
    found = {record.name: record.identity for record in read_records(tmp_path)[0]}
    ce, kd = ([found[name] for name in found if f"_r:{r}" in name] for r in ("1.0", "0.1"))
    assert ce[0] == ce[1] and kd[0] != kd[1]


DAMAGED = [("args.json", "[]"), ("args.json", "{"), ("args.json", "{}"),
           ("args.json", '{"settings": {"distill": "kd"}}'),
           ("args.json", '{"settings": [], "facts": {}, "versions": {}}'), ("args.json", "[" * 100_000),
           ("result.json", "{}"), ("result.json", "[1]"), ("result.json", '{"last": {"top1": 1}, "best": 3}'),
           ("log.jsonl", "{}\n"), ("log.jsonl", "3\n"), ("log.jsonl", '{"phase": "train", "epoch": 1}\n'),
           ("log.jsonl", '{"phase": "train", "epoch": 1, "test_top1": NaN}\n')]


@pytest.mark.parametrize("name, content", [*DAMAGED, ("result.json", b"\xff\xfe")])
def test_a_damaged_folder_is_left_out_with_a_line_and_stops_no_other(tmp_path, name, content):
    write_run(tmp_path, f"{KD} --trial 1", [50.0, 60.0])
    folder = write_run(tmp_path, f"{KD} --trial 2", [50.0, 60.0])
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    records, (fault,) = read_records(tmp_path)
    assert [record.trial for record in records] == ["1"]
    assert f"{folder / name} is damaged: bring it back from a copy, or move its folder away" in fault
    with pytest.raises(UsageError, match="is damaged"):
        read_run(folder)


def test_a_folder_whose_name_is_no_text_is_read(tmp_path):
    folder = write_run(tmp_path, KD, [50.0, 60.0])
    shutil.move(os.fsencode(folder), os.fsencode(folder.parent) + b"/S:\xff")
    (record,), faults = read_records(tmp_path)
    assert faults == [] and record.pair == "resnet56->resnet20"


def test_a_folder_without_a_run_and_one_of_a_teacher(tmp_path, digits_teacher):
    assert read_run(tmp_path) is None and read_result(tmp_path, student=True) is None
    record = read_run(digits_teacher.parent)
    assert not record.is_student and record.settings["model"] == "resnet14" and len(record.log) == 3
    assert record.result["last"]["top1"] == record.log[-1]["test_top1"]
