"""Several processes train one student, as a single one would: on the CPU, with gloo."""
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

import dataset
from dataset._strong import strong_draws
from distiller_zoo import METHODS
from helper.build import make_setup
from helper.cli import student_options
from helper.util.seeding import derive_seed
from models import build, load_model
from models.precision import FLOAT32
from tests.support import scripts

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(scripts.ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}
# 382 images: the last batch has 6, of which four processes get 2, 2, 1 and 1.
DATA = ["--dataset", "digits", "--imbalance", "0.015", "--batch_size", "188", "--warm_up", "0", "--epochs", "2"]
# Small steps, and few, since training amplifies rounding: two threads instead of one do as much.
FLAGS = [*DATA, "--model_s", "resnet8", "--learning_rate", "0.002", "--init_epochs", "1", "--sync_bn", "--avg", "2"]
READ = frozenset({"logits", "pooled", "stages", "preacts", "stem", "cam", "strong"})
# Of each kind: means over the samples, relations between them, banks, parameters of the method's, a first stage.
METHODS_TRIED = ["kd", "rkd", "crd", "hint", "factor"]


def torchrun(processes, script, *flags):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), script,
            *(str(flag) for flag in flags)]


def start(processes, script, *flags):
    """The processes, by rank, as torchrun starts them, which takes seconds of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [scripts.Process(script, *flags, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)]


def run(processes, script, *flags):
    """As `start`, once they have ended."""
    started = start(processes, script, *flags)
    for process in started:
        process.wait()
    return started


def train_all(processes, save_dir, teacher, methods):
    for done in run(processes, "tests/support/every_method.py", save_dir, teacher, " ".join(FLAGS), ",".join(methods)):
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def student(save_dir, method):
    """The student's weights, without what counts steps, the lines of the log, and the folder."""
    folder = scripts.only(save_dir / "student_model", f"*_{method}_r:*")
    state = torch.load(folder / "resnet8_last.pth", weights_only=True, map_location="cpu")["model"]
    return weights(state), scripts.read_log(folder), folder


def weights(state):
    return torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])


def same(save, single, method):
    """The step is that of the whole batch: what is left is rounding, a small part of the way that was gone."""
    torch.manual_seed(derive_seed(0, "1", "init"))
    start = weights(build("resnet8", 10).state_dict())
    (one, log_one, _), (many, log_many, folder) = student(single, method), student(save, method)
    tight = method in ("kd", "crd")  # and where an error of a few percent of a step would show
    way = (many - one).norm() / (one - start).norm()
    assert way <= (0.003 if tight else 0.01), method
    for line_one, line_many in zip(log_one, log_many, strict=True):
        assert line_many["losses"] == pytest.approx(line_one["losses"], rel=2e-4 if tight else 1e-2), method
        if "test_loss" in line_one:
            assert line_many["test_loss"] == pytest.approx(line_one["test_loss"], rel=5e-3)
            assert line_many["train_top1"] == pytest.approx(line_one["train_top1"], abs=3)
    return folder


def test_two_and_four_processes_train_as_one_does(tmp_path, digits_teacher):
    tried = {1: METHODS_TRIED, 2: METHODS_TRIED, 4: ["crd"]}
    for processes, methods in tried.items():
        train_all(processes, tmp_path / str(processes), digits_teacher, methods)
    for processes in (2, 4):
        for method in tried[processes]:
            folder = same(tmp_path / str(processes), tmp_path / "1", method)
            # Rank 0 alone writes: one file of scalars.
            scalars = tmp_path / str(processes) / "student_tensorboards" / f"{method}+IKD_{folder.name}"
            assert len(list(scalars.iterdir())) == 1


def test_a_stopped_run_resumes_bit_identically_and_only_with_as_many_processes(tmp_path, digits_teacher):
    flags = [*DATA[:-1], 8, "--model_s", "resnet8", "--path_t", digits_teacher, "--distill", "crd", "--nce_k", 64]
    whole = run(2, "train_student.py", *flags, "--save_dir", tmp_path / "whole")
    assert [process.returncode for process in whole] == [0, 0], whole[0].stderr
    flags += ["--save_dir", tmp_path / "again"]
    # The processes of a killed torchrun end with it.
    killed = subprocess.Popen(torchrun(2, "train_student.py", *flags), cwd=scripts.ROOT, env=ENVIRONMENT, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in killed.stdout:  # to the end of all that it has started
        if line.startswith("train 2/8"):
            killed.kill()
    errors = killed.stderr.read()
    assert killed.wait() == -signal.SIGKILL
    assert errors.count("stopped by SIGTERM; the same command continues") == 1, errors
    # A signal to one of them stops all.
    stopped = start(2, "train_student.py", *flags)
    stopped[0].until("train 4/8")
    stopped[1].signal(signal.SIGTERM)
    assert [process.wait() for process in stopped] == [128 + signal.SIGTERM] * 2
    assert [process.stderr.count("stopped by SIGTERM; the same command continues") for process in stopped] == [1, 0]
    single = scripts.run("train_student.py", *flags)
    assert single.returncode == 2 and "holds a run of 2 processes, and there is 1 now" in single.stderr
    again = run(2, "train_student.py", *flags)
    assert [process.returncode for process in again] == [0, 0], again[0].stderr
    assert "continuing after epoch" in again[0].stdout and again[1].stdout == ""
    one, other = (torch.load(next((tmp_path / name).rglob("resnet8_last.pth")), weights_only=True)
                  for name in ("whole", "again"))
    assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.whole_batch])
def test_the_loss_of_a_batch_is_the_mean_over_its_shares(method, digits_teacher):
    """So each process may compute its own; a method that relates samples to each other says so by whole_batch."""
    options = student_options(["--path_t", "t", "--distill", method])
    data = dataset.load("digits", "")
    views = data.train_views(torch.device("cpu"))
    torch.manual_seed(0)
    networks = [build("resnet8", 10).eval(), load_model(digits_teacher)[0].eval()]
    built = METHODS[method](make_setup(*networks, data, lambda name, compute: 1 - torch.eye(10)), options)
    stage = built.stage(networks[0])
    term = (stage.term if stage else built).eval()  # batch norm in regressors goes by its statistics
    term.start_epoch(2, torch.Generator())

    @torch.no_grad()
    def loss(part):
        batch = views.batch(torch.arange(60)[part], torch.full((60,), 80)[part], strong_draws(60, 0, "1", "t", 1)[part])
        student, teacher = (FLOAT32.outputs(network, batch.images, READ, batch.strong) for network in networks)
        return term(student, teacher, batch).item()

    assert loss(slice(None)) == pytest.approx((20 * loss(slice(20)) + 40 * loss(slice(20, 60))) / 60, rel=1e-4)


def test_what_cannot_be_shared_is_refused_once(tmp_path, digits_teacher):
    for flags, message in (
            ([*FLAGS, "--batch_size", "33"], "--batch_size 33 cannot be shared equally by 2 processes"),
            ([*FLAGS, "--batch_size", "218", "--imbalance", "0.03"], "has 1 of the 437 images"),
            # The last batch's shares are of 2 images and of 1.
            ([*DATA, "--batch_size", "434", "--imbalance", "0.03", "--model_s", "MobileNetV1"],
             "a process's share of a batch has a single image, on which MobileNetV1 cannot train")):
        refused = run(2, "train_student.py", *flags, "--path_t", digits_teacher, "--save_dir", tmp_path)
        assert [process.returncode for process in refused] == [2, 2] and not os.listdir(tmp_path)
        # PyTorch may have remarks of its own on the machine's network.
        said = [line for process in refused for line in process.stderr.splitlines() if line.startswith("error:")]
        assert len(said) == 1 and message in said[0], said
