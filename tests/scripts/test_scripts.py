"""The entry scripts, run as a user runs them, on the digits."""
import json
import math

import pytest
import torch

from models import load_model
from tests.support import scripts

FAST = ("--dataset", "digits", "--epochs", 2, "--warm_up", 0, "--batch_size", 128)


def student(teacher, save, *flags):
    return scripts.succeed("train_student.py", "--path_t", teacher, *FAST, "--save_dir", save, *flags)


def test_a_teacher_learns_the_digits_and_leaves_the_published_files(digits_teacher):
    folder = digits_teacher.parent
    assert folder.name == "resnet14_digits_lr_0.05_decay_0.0005_trial_0"
    result = json.loads((folder / "result.json").read_text())
    assert result["last"]["top1"] > 80 and result["last"]["epoch"] == 3
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "args.json", "log.jsonl", "result.json", "resnet14_best.pth", "resnet14_last.pth"}
    network, checkpoint = load_model(digits_teacher)
    assert (network.name, checkpoint.epoch, checkpoint.num_classes) == ("resnet14", 3, 10)
    assert checkpoint.accuracy == result["last"]["top1"]


@pytest.fixture(scope="module")
def dkd_run(digits_teacher, tmp_path_factory):
    """The published DKD+IKD command on the digits: (its folder, its save folder, its output)."""
    save = tmp_path_factory.mktemp("student")
    process = student(digits_teacher, save, "--distill", "dkd", "--model_s", "resnet8", "-r", 1.0, "-a", 1.0,
                      "-b", 8.0, "--avg", 6.5, "--intra_T", 1.0, "--trial", 1, "--save_freq", 1, "--tb_freq", 5)
    return scripts.only(save / "student_model"), save, process.stdout


def test_the_run_says_at_its_start_what_it_will_do(dkd_run):
    folder, _, output = dkd_run
    for text in ["resnet8, 78,042 parameters", "resnet14, ", "test accuracy ",
                 "1·CE + dkd [T²·(a·TCKD + b·NCKD); a=1, b=8, kd_T=4.0, logit_std=off] + 6.5·IKD(T=1)",
                 "digits, 1,442 training and 355 test images, 10 classes", "2 epochs of batches of 128",
                 "cpu, ", "float32", str(folder)]:
        assert text in output.split("train 1/2")[0]


def test_the_folder_has_the_published_name_and_files(dkd_run):
    folder, _, _ = dkd_run
    assert folder.name == "S:resnet8_T:resnet14_digits_dkd_r:1.0_a:1.0_b:8.0_intrat:1.0_avg:6.5_1"
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "args.json", "log.jsonl", "result.json", "resnet8_best.pth", "resnet8_last.pth",
        "ckpt_epoch_1.pth", "ckpt_epoch_2.pth"}


def test_the_log_holds_every_term_and_accuracy_of_each_epoch(dkd_run):
    lines = scripts.read_log(dkd_run[0])
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert set(line) == {"phase", "epoch", "learning_rate", "loss", "losses", "train_top1", "train_top5",
                             "test_loss", "test_top1", "test_top5", "seconds", "images_per_second"}
        assert set(line["losses"]) == {"ce", "dkd", "ikd"}
        assert sum(line["losses"].values()) == pytest.approx(line["loss"], rel=1e-5)
        assert line["images_per_second"] == pytest.approx(1442 / line["seconds"], rel=0.01)
    assert lines[0]["losses"]["ikd"] == 0 < lines[1]["losses"]["ikd"]
    assert lines[1]["losses"]["dkd"] < lines[0]["losses"]["dkd"]


def test_arguments_and_result_are_plain_json(dkd_run):
    folder, _, _ = dkd_run
    arguments = json.loads((folder / "args.json").read_text())
    assert arguments["settings"]["beta"] == 8.0 and arguments["settings"]["learning_rate"] == 0.05
    assert arguments["command"].startswith("python train_student.py --path_t")
    assert arguments["versions"]["torch"] == torch.__version__ and "commit" in arguments and "started" in arguments
    result, lines = json.loads((folder / "result.json").read_text()), scripts.read_log(folder)
    best = max(lines, key=lambda line: line["test_top1"])
    assert result["last"] == {"epoch": 2, "top1": lines[1]["test_top1"], "top5": lines[1]["test_top5"]}
    assert result["best"] == {"epoch": best["epoch"], "top1": best["test_top1"], "top5": best["test_top5"]}
    assert result["teacher"] == "resnet14" and result["teacher_top1"] > 80


def test_checkpoints_load_safely_and_hold_the_student_alone(dkd_run):
    folder, _, _ = dkd_run
    last = torch.load(folder / "resnet8_last.pth", weights_only=True)
    epoch2 = torch.load(folder / "ckpt_epoch_2.pth", weights_only=True)
    assert set(last) == {"model", "epoch", "accuracy", "optimizer", "model_name", "num_classes"}
    network, _ = load_model(folder / "resnet8_best.pth")
    assert set(last["model"]) == set(network.state_dict())
    assert all(torch.equal(last["model"][key], epoch2["model"][key]) for key in last["model"])


def test_tensorboard_reads_the_scalars_under_their_published_names(dkd_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder, save, _ = dkd_run
    reader = EventAccumulator(str(save / "student_tensorboards" / f"dkd+IKD_{folder.name}"))
    reader.Reload()
    lines = scripts.read_log(folder)
    names = {"train_acc": "train_top1", "train_loss": "loss", "test_acc": "test_top1", "test_acc_top5": "test_top5",
             "test_loss": "test_loss"}
    for scalar, key in names.items():
        events = reader.Scalars(scalar)
        assert [event.step for event in events] == [1, 2]
        assert [event.value for event in events] == pytest.approx([line[key] for line in lines], rel=1e-5)
    assert [event.step for event in reader.Scalars("train_steps/dkd")] == [5, 10, 17, 22]
    # Each term's average of every epoch: also of runs that are shorter than --tb_freq steps.
    for term in ("ce", "dkd", "ikd"):
        assert [event.value for event in reader.Scalars(f"loss/{term}")] == pytest.approx(
            [line["losses"][term] for line in lines], rel=1e-5)


def test_a_finished_run_reports_its_result_and_is_not_trained_again(dkd_run, digits_teacher):
    folder, save, output = dkd_run
    before = (folder / "resnet8_last.pth").stat().st_mtime_ns
    process = student(digits_teacher, save, "--distill", "dkd", "--model_s", "resnet8", "-r", 1.0, "-a", 1.0, "-b", 8.0,
                      "--avg", 6.5, "--intra_T", 1.0, "--trial", 1)
    assert process.stdout.splitlines()[-1] == "already finished; " + output.splitlines()[-1]
    assert "train 1/2" not in process.stdout
    assert (folder / "resnet8_last.pth").stat().st_mtime_ns == before


@pytest.mark.parametrize("flags, terms", [
    (["--distill", "kd", "-r", "0.1", "-a", "0.9", "-b", "0"], {"ce", "kd"}),
    (["--distill", "kd", "-r", "1", "-a", "0"], {"ce"}),
    (["--distill", "nkd", "--kd_T", "1"], {"ce", "nkd"}),
    (["--distill", "wttm", "--wttm_gamma", "0.2", "--wttm_beta", "2", "--avg", "1"], {"ce", "wttm", "ikd"}),
])
def test_every_logit_method_trains_to_a_falling_loss(digits_teacher, tmp_path, flags, terms):
    student(digits_teacher, tmp_path, *flags, "--imbalance", 0.01, "--batch_size", 32)
    first, second = scripts.read_log(scripts.only(tmp_path / "student_model"))
    assert set(first["losses"]) == terms and math.isfinite(second["loss"])
    assert sum(second["losses"].values()) - second["losses"].get("ikd", 0) < first["loss"]


@pytest.mark.parametrize("model, rate", [("resnet8", 0.05), ("ShuffleV2", 0.01)])
def test_a_models_own_learning_rate_applies_where_none_is_given(model, rate):
    from helper.cli import student_options, teacher_options
    assert student_options(["--path_t", "t", "--model_s", model]).learning_rate == rate
    assert teacher_options(["--model", model]).learning_rate == rate
    assert student_options(["--path_t", "t", "--model_s", model, "--learning_rate", "0.2"]).learning_rate == 0.2


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(digits_teacher, tmp_path):
    process = scripts.run("train_student.py", "--path_t", digits_teacher, "--dataset", "digits", "--epochs", 4,
                          "--learning_rate", 1e12, "--warm_up", 40, "--lr_decay_epochs", "", "--save_dir", tmp_path)
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "is not finite" in process.stderr and "step" in process.stderr and "learning rate" in process.stderr
    assert not list(tmp_path.rglob("result.json"))
    for path in tmp_path.rglob("*.pth"):
        held = torch.load(path, weights_only=True)
        weights = held.get("model") or held["modules"]["student"]
        assert all(value.isfinite().all() for value in weights.values())


def test_help_lists_the_methods_in_a_line_each_and_shows_the_flags_of_one():
    from distiller_zoo import METHODS
    process = scripts.succeed("train_student.py", "--help")
    methods = process.stdout.split("(--help METHOD shows the flags of one):\n")[1].splitlines()
    assert [line.split()[0] for line in methods] == list(METHODS) and max(map(len, methods)) <= 80
    assert "--wttm_gamma" not in process.stdout and "(default )" not in process.stdout
    shown = scripts.succeed("train_student.py", "--help", "crd").stdout
    assert all(flag in shown for flag in ("--feat_dim", "--nce_k", "--kd_T")) and "--epochs" not in shown
    assert "did you mean crd?" in scripts.run("train_student.py", "--help", "crdd").stderr
