"""Whole runs on CUDA devices by the entry scripts."""
import signal

import pytest
import torch

import dataset
from helper.teacher.plan import AHEAD, batches_ahead
from helper.teacher.source import LiveTeacher
from models import build
from tests.end_to_end.test_resume import FAST, METHODS, assert_same, record
from tests.support import images, scripts
from tests.support.on_gpu import needs_gpu

pytestmark = needs_gpu
CUDA = ("--device", "cuda", "--deterministic", "--tf32", "off")


@pytest.mark.parametrize("name", ["kd+IKD", "crd"])
def test_a_stopped_run_ends_with_the_same_bits(name, digits_teacher, tmp_path):
    flags = ("--path_t", digits_teacher, *FAST, *CUDA, "--imbalance", 0.015, "--epochs", 20, *METHODS[name][1:])
    scripts.succeed("train_student.py", *flags, "--save_dir", tmp_path / "whole")
    stopped = scripts.Process("train_student.py", *flags, "--save_dir", tmp_path / "stopped")
    stopped.until("train  2/20")
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == 128 + signal.SIGTERM, stopped.stderr
    assert "continuing after epoch" in scripts.succeed("train_student.py", *flags, "--save_dir",
                                                       tmp_path / "stopped").stdout
    assert_same(*(record(scripts.only(tmp_path / folder / "student_model")) for folder in ("whole", "stopped")))


def test_steps_of_images_from_files_are_captured(tmp_path):
    """While other processes read and a thread pins memory: the bits are those of eager steps without either."""
    data = ("--dataset", "folder", "--data_dir", images.class_folders(tmp_path / "data", train=14), "--image_size", 32,
            "--batch_size", 16, *CUDA)
    scripts.succeed("train_teacher.py", "--model", "resnet8", "--epochs", 1, *data, "--save_dir", tmp_path)
    flags = ("--path_t", scripts.only(tmp_path / "models") / "resnet8_last.pth", *data, "--epochs", 5, "--avg", 1,
             "--warm_up", 0)
    runs = {}
    for name, way in (("captured", ["--num_workers", 2]), ("eager", ["--num_workers", 0, "--cuda_graph", "off"])):
        said = scripts.succeed("train_student.py", *flags, *way, "--save_dir", tmp_path / name).stdout
        assert ("one CUDA graph" in said) == (name == "captured") and "continuing eagerly" not in said
        runs[name] = record(scripts.only(tmp_path / name / "student_model"))
    assert_same(runs["captured"][0]["resnet8_last.pth"]["model"], runs["eager"][0]["resnet8_last.pth"]["model"])
    assert_same(runs["captured"][1], runs["eager"][1])


def test_the_teacher_works_ahead_on_images_in_memory_alone(tmp_path):
    """Those in files would all be read before the first step."""
    digits, device, reads = dataset.load("digits", ""), torch.device("cuda"), frozenset({"logits"})
    files = dataset.load("folder", str(images.class_folders(tmp_path)), image_size=32, skip_unreadable=False)
    for data, batches in ((digits, AHEAD // 16), (files, 1)):
        teacher = LiveTeacher(build("resnet8", len(data.classes)).to(device), reads)
        assert batches_ahead(data.train_views(device), teacher, reads, 16) == batches
