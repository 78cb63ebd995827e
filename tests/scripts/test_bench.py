"""scripts/bench.py: what it says of methods beside kd."""
import argparse
import multiprocessing
import re

import torch

from scripts.bench import operators_table, turn_lengths
from scripts.timing.steps import IMAGES, Variant, worker
from tests.support import scripts

SMALL = ("--teacher", "resnet14", "--student", "resnet8", "--batch_size", 8, "--classes", 10, "--turns", 1,
         "--steps", 1)


def test_methods_are_compared_with_kd_live_and_where_a_cache_can_hold_what_they_read():
    names = ["kd", "similarity", "crld", "fsp", "wkd-f", "kd+dot", "crd"]
    shown = scripts.succeed("scripts/bench.py", "--methods", ",".join(names), "--device", "cpu", *SMALL).stdout
    cells = {row[0]: row[1:] for row in (re.split(r" *\| *", line)[1:-1] for line in shown.splitlines())
             if row and row[0] in names}
    assert list(cells) == names
    assert cells["kd"][1::2] == ["1.00", "1.00"] and float(cells["kd"][4]) == 0
    assert {name for name in names if cells[name][2] == "–"} == {"similarity", "wkd-f"}
    memory = {name: float(row[4]) for name, row in cells.items()}
    # A second pass of the student, and two banks of 50,000 vectors of 128.
    assert memory["crld"] > 1 and 48 < memory["crd"] < 55 and memory["kd+dot"] == 0
    assert "--methods kd,similarity" in shown and "resnet14→resnet8, batches of 8" in shown


def test_another_method_is_refused():
    refused = scripts.run("scripts/bench.py", "--methods", "nothing", *SMALL)
    assert refused.returncode == 2 and "'nothing' is not a method" in refused.stderr


def test_turns_on_a_gpu_are_whole_epochs_since_the_teacher_works_ahead():
    epoch = IMAGES // 64
    assert turn_lengths(30, 64, "cuda") == (2 * epoch, 5 * epoch) and turn_lengths(15, 64, "cuda")[0] == epoch
    assert turn_lengths(20, 64, "cpu") == (20, epoch + 3)


def test_what_is_timed_lets_cudnn_choose_as_training_does(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    pipe, end = multiprocessing.Pipe()
    pipe.close()  # no turn at all
    worker(end, Variant(cached=True), argparse.Namespace(teacher="resnet8", student="resnet8", batch_size=8,
                                                         classes=10, device="cpu"))
    assert torch.backends.cudnn.benchmark


def test_operators_are_listed_by_their_time_and_no_time_at_all_is_said():
    table = operators_table("ours", [(1000.0, "aten::add", 10), (9000.0, "aten::mm", 5)]).splitlines()
    assert [re.split(r" *\| *", line)[1:-1] for line in table[2:]] == [
        ["`aten::mm`", "1", "1.8", "90.0%"], ["`aten::add`", "2", "0.2", "10.0%"]]
    assert "no time of the device" in operators_table("ours", [(0.0, "aten::mm", 5)])
