"""The published figures, and what a run says of a teacher that is far from them."""
import signal
import sys

import pytest
import torch

import train_student
from helper.record.published import TEACHERS, teacher_warning
from models import model_dict
from tests.support import scripts


@pytest.mark.parametrize("name, dataset, top1, warns", [
    ("resnet110", "cifar100", 70.27, True), ("resnet110", "cifar100", 74.31, False),
    ("resnet110", "cifar100", 73.82, False), ("resnet110", "cifar100", 73.80, True),
    ("resnet110", "cifar100", 74.90, True), ("resnet110", "digits", 70.27, False),
    ("resnet44", "cifar100", 20.0, False)])
def test_a_teacher_far_from_the_published_one_is_warned_of(name, dataset, top1, warns):
    warning = teacher_warning(name, dataset, top1)
    assert (warning is not None) == warns
    if warns:
        assert f"tests at {top1:.2f}" in warning and f"{TEACHERS[name]:.2f}" in warning


def test_the_run_warns_once(cifar_server, tmp_path, monkeypatch, capsys):
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
