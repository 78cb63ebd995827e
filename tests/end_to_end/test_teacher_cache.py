"""What training with the teacher cache gives: whole runs of train_student.py."""
import json
import os
import re
import signal
import sys

import pytest
import torch

import dataset
import train_student
from helper.record.run import RunRecord
from helper.teacher import cache as cache_module
from helper.util.errors import Interrupted, UsageError
from helper.util.seeding import derive_seed
from tests.support import mounts
from tests.support.teacher_cache import make_data, make_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """conduct(trial, flags) -> (weights at the end, log lines, args.json) of train_student.py on 40 digits."""
    root = tmp_path_factory.mktemp("runs")
    data = make_data(40)
    torch.save({"model": make_teacher().state_dict(), "model_name": "resnet8", "num_classes": 10}, root / "teacher.pth")

    def conduct(trial, *flags, epochs=8):
        argv = ["train_student.py", "--path_t", str(root / "teacher.pth"), "--dataset", "digits", "--batch_size", "20",
                "--epochs", str(epochs), "--learning_rate", "0.005", "--wram_up", "0", "--avg", "2", "--seed", "3",
                "--trial", trial, "--save_dir", str(root), "--device", "cpu", *flags]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(dataset.LOADERS, "digits", lambda folder: data)
            patch.setattr(sys, "argv", argv)
            handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            # The trial names the folder; the streams are to be those of one trial.
            for module in ("helper.build", "helper.step", "dataset.views", "dataset._strong"):
                patch.setattr(sys.modules[module], "derive_seed",
                              lambda seed, trial, *purpose: derive_seed(seed, "1", *purpose))
            try:
                train_student.main()
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        folder, = (root / "student_model").glob(f"*_{trial}")
        state = torch.load(folder / "resnet8_last.pth", weights_only=True)["model"]
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return state, lines, json.loads((folder / "args.json").read_text())

    conduct.root = root
    return conduct


def losses(lines):
    return torch.tensor([[line["loss"], *line["losses"].values(), line["test_loss"]] for line in lines])


@pytest.fixture(scope="module")
def live(runs):
    return runs("live")


def test_run_with_float32_cache_is_bit_equal(runs, live, capsys):
    state, lines, args = runs("float32", "--teacher_cache", str(runs.root / "cache"), "--cache_dtype", "float32")
    assert "asked for (float32" in args["facts"]["cache"] and args["decisions"]["teacher_source"] == "cache"
    assert "logits of 3,240 views" in capsys.readouterr().out
    assert all(torch.equal(state[key], live[0][key]) for key in state)
    assert torch.equal(losses(lines), losses(live[1]))


def test_run_with_float16_cache_stays_near(runs, live):
    """Over the trajectory: every epoch's losses within 1%, the weights and statistics at its end within 1% of
    their norm. Training amplifies any rounding: what one step sees is less than a thousandth (see above)."""
    state, lines, _ = runs("float16", "--teacher_cache", str(runs.root / "cache"))
    assert not torch.equal(losses(lines), losses(live[1]))
    torch.testing.assert_close(losses(lines), losses(live[1]), rtol=0.01, atol=0)
    ours, theirs = (torch.cat([value.float().flatten() for value in s.values()]) for s in (state, live[0]))
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_run_with_means_over_all_views(runs, live):
    _, lines, _ = runs("all", "--teacher_cache", str(runs.root / "cache"), "--ikd_means", "all")
    assert [line["losses"]["ikd"] > 0 for line in lines] == [False] + 7 * [True]
    # The first epoch has no IKD, so only from the second on do the means tell.
    torch.testing.assert_close(losses(lines[:1]), losses(live[1][:1]), rtol=1e-3, atol=0)
    assert abs(lines[1]["losses"]["ikd"] / live[1][1]["losses"]["ikd"] - 1) > 1e-3


def test_means_over_all_views_need_the_cache(runs, capsys):
    with pytest.raises(UsageError, match=r"--ikd_means all .* give --teacher_cache on"):
        runs("refused", "--ikd_means", "all")
    runs("without", "--ikd_means", "all", "--avg", "0", epochs=1)
    assert "--ikd_means has no effect without the IKD term" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_run_with_a_growing_cache(dtype, runs, live):
    """In float32 bit-identical to the live teacher; a second run computes nothing anew, and ends alike."""
    flags = ("--teacher_cache", "auto", "--cache_dtype", dtype, "--cache_dir", str(runs.root / f"grows{dtype}"))
    state, lines, args = runs(f"grows{dtype}", *flags)
    assert "grows by the views that each epoch shows (0%" in args["facts"]["cache"]
    assert torch.equal(losses(lines), losses(live[1])) == (dtype == "float32")
    if dtype == "float32":
        assert all(torch.equal(state[key], live[0][key]) for key in state)
    again, _, args = runs(f"again{dtype}", *flags)
    assert re.search(r"shows \([1-9]\d?% of all", args["facts"]["cache"])
    assert all(torch.equal(state[key], again[key]) for key in state)


@pytest.mark.parametrize("method, how", [("crld", "on"), ("mlkd", "auto")])
def test_a_second_view_beside_a_cache_gives_what_the_live_teacher_gives(method, how, runs):
    """The cache has the usual view's outputs alone: the second view's are the live teacher's of the same images."""
    live_state, live_lines, args = runs(f"{method}live", "--distill", method, epochs=2)
    assert "cache" not in args["facts"]
    state, lines, args = runs(f"{method}{how}", "--distill", method, "--teacher_cache", how, "--cache_dtype",
                              "float32", "--cache_dir", str(runs.root / f"second{how}"), epochs=2)
    assert "the second view's outputs are computed live" in args["facts"]["cache"]
    assert args["decisions"]["teacher_source"] == "cache"
    assert all(torch.equal(state[key], live_state[key]) for key in state)
    assert torch.equal(losses(lines), losses(live_lines)) and lines[1]["losses"][method] > 0


def test_auto_uses_what_is_there_but_a_run_keeps_its_choice(runs, monkeypatch):
    elsewhere = str(runs.root / "elsewhere")
    end_epoch = RunRecord.end_epoch

    def end_then_stop(run, *args):
        end_epoch(run, *args)
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "end_epoch", end_then_stop)
        # No room for a cache: the live teacher teaches.
        usage = cache_module.shutil.disk_usage(runs.root)
        patch.setattr(cache_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(Interrupted):
            runs("kept", "--teacher_cache", "auto", "--cache_dir", elsewhere)
    there = str(runs.root / "cache")
    runs("there", "--teacher_cache", there)
    # Another --cache_dir is no other run; the cache there is complete, yet the run began without one.
    _, lines, args = runs("kept", "--teacher_cache", "auto", "--cache_dir", there)
    assert len(lines) == 8 and "as this run began (live)" in args["facts"]["cache"]
    _, _, args = runs("new", "--teacher_cache", "auto", "--cache_dir", there)
    assert args["facts"]["cache"].startswith("complete (float16, ")


def test_a_complete_cache_is_used_where_it_cannot_be_written_and_another_is_not(runs, capsys):
    folder = str(runs.root / "shared")
    state, _, _ = runs("built", "--teacher_cache", folder, epochs=1)
    with mounts.read_only(folder):
        again, _, args = runs("read", "--teacher_cache", folder, epochs=1)
        assert args["facts"]["cache"].startswith("complete (")
        assert all(torch.equal(again[key], value) for key, value in state.items())
        grown = ("--teacher_cache", "auto", "--cache_dir", folder, "--cache_dtype", "float32")
        _, _, args = runs("other", *grown, epochs=1)
        assert "is not complete and cannot be written" in args["facts"]["cache"]
        with pytest.raises(UsageError, match=r"cannot write to .* --cache_dir"):
            runs("refused2", "--teacher_cache", folder, "--cache_dtype", "float32")


def test_without_a_cache_its_folder_need_not_be_written(runs):
    """Not even for the teacher's accuracy, which is kept there."""
    folder, file = runs.root / "empty", runs.root / "file"
    folder.mkdir()
    file.touch()
    state, _, _ = runs("beside", "--teacher_cache", "off", "--cache_dir", str(runs.root / "writable"), epochs=1)
    states = [runs("none", "--teacher_cache", "off", "--cache_dir", str(file / "cache"), epochs=1)[0]]
    with mounts.read_only(folder):
        states.append(runs("off", "--teacher_cache", "off", "--cache_dir", str(folder), epochs=1)[0])
        assert os.listdir(folder) == []
    assert all(torch.equal(value, other[key]) for other in states for key, value in state.items())
