"""Whether a run can keep `--deterministic` on CUDA, found on the CPU before anything is written."""
import copy

import torch
from torch import Tensor

from dataset import Batch, Data
from helper.objective import Objective
from helper.util.errors import UsageError
from models import Classifier, Outputs

# The gradients of images that PyTorch has no deterministic kernel for on CUDA (torch.use_deterministic_algorithms), by
# the name that autograd gives them.
UNREPEATABLE = {"AdaptiveAvgPool2DBackward0": "adaptive average pooling",
                "AdaptiveMaxPool2DBackward0": "adaptive max pooling",
                "UpsampleBicubic2DBackward0": "bicubic interpolation",
                "GridSampler2DBackward0": "grid sampling"}


def check_deterministic(network: Classifier, objectives: list[Objective], teacher: Outputs, data: Data) -> None:
    """Look through a step's gradients, by one of two black images.

    network, objectives: on the CPU, whose state stays as it is; teacher: its outputs for the images
    Raises UsageError where one of them differs each time on CUDA, naming the network or the term that takes it.
    """
    images, index = torch.zeros(2, *data.image_shape), torch.arange(2)
    batch = Batch(images, data.train.labels[:2], index, torch.zeros_like(index), strong=images)
    student = network.eval()(images, named=True, cam=True)
    student, teacher = (outputs._replace(strong=outputs.logits) for outputs in (student, teacher))
    _refuse(network.name, student.logits)
    for objective in map(copy.deepcopy, objectives):  # a term's forward may change what it holds
        objective.start_epoch(1, torch.Generator())
        for name, loss in objective(student, teacher, batch).items():
            _refuse(name, loss)


def _refuse(name: str, result: Tensor) -> None:
    seen, left = set(), [result.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() in UNREPEATABLE:
            raise UsageError(f"--deterministic: {name} takes the gradient of {UNREPEATABLE[node.name()]}, which "
                             "PyTorch cannot repeat bit for bit on CUDA: leave it out, or take other networks or "
                             "another method")
        seen.add(node)
        left += [before for before, _ in node.next_functions]
