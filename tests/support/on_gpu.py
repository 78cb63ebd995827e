"""A small training on a CUDA device, as the tests of tests/gpu hold it against others."""
import os
import tempfile
from functools import lru_cache

import pytest
import torch

import dataset
from helper import build
from helper.cli import student_options
from helper.record.run import Earlier, Record
from helper.step import choose_step
from helper.teacher.cache import Cache
from helper.teacher.plan import TeacherPlan, build_batch
from models import build as build_network

# What cuBLAS needs to repeat itself; it reads this when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@lru_cache
def cache_dir():
    """A folder for what is kept of teachers, as long as this process."""
    return tempfile.TemporaryDirectory(prefix="ikd-test-")


def few_digits(each=4):
    """The first images of each of the ten classes of the digits, as training and test set."""
    digits = dataset.load("digits", "")
    first = torch.cat([(digits.train.labels == c).nonzero().flatten()[:each] for c in range(10)])
    few = dataset.Split(digits.train.images[first], digits.train.labels[first])
    return dataset.Data("digits", digits.classes, digits.mean, digits.std, False, few, few)


def phases_of(flags, device=CUDA, student="resnet8", teacher="resnet8", data=None, captured=True, cached=False,
              batch_size=16):
    """A run's phases, as train_student.py makes them, of a teacher with random weights.

    captured: False leaves out what `--cuda_graph` decides; cached: from a teacher cache of float32
    """
    torch.manual_seed(0)
    data = data or few_digits()
    options = student_options(["--path_t", "t", "--model_s", student, "--learning_rate", "0.01", "--warm_up", "0",
                               "--init_epochs", "6", "--epochs", "6", "--batch_size", str(batch_size), *flags,
                               "--cache_dir", cache_dir().name, *([] if captured else ["--cuda_graph", "off"])])
    network = build_network(teacher, len(data.classes)).requires_grad_(False)
    trainee = build.make_student(options, data, network, device)
    views = data.train_views(device, "strong" in trainee.objective.reads)
    reads, classes = trainee.objective.reads, len(data.classes)
    cache = Cache(cache_dir().name, network, data, "float32", device, {"logits": classes}) if cached else None
    teaching = TeacherPlan(network, reads, "complete" if cached else "live", cache, {},
                           build_batch(data, device, batch_size), trainee.precision)
    return build.student_phases(options, trainee, network, teaching, views, Record(options, Earlier()))


def train(phases, step_of=choose_step, watched=False):
    """Train all epochs of the phases; the last one's student's state, the losses of every epoch and the last step.

    watched: whether a step of the phases' last epoch that waits for the device raises
    """
    read = []
    for phase in phases:
        step, meters = step_of(phase), phase.meters()
        for epoch in range(1, phase.epochs + 1):
            phase.start_epoch(epoch)
            meters.reset()
            try:
                for batch, outputs in phase.batches(epoch):  # the first brings the epoch's plan to the device
                    torch.cuda.set_sync_debug_mode("error" if watched and epoch == phase.epochs else "default")
                    step(phase, batch, outputs, meters)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            averages = meters.read()
            read.append([averages.loss, *averages.losses.values()])
            phase.end_epoch(epoch)
        state = {name: value.cpu().clone() for name, value in phase.student.state_dict().items()}
        phase.close()
    return state, read, step
