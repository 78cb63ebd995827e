"""Checkpoints to read, and what a bad one is refused with."""
import pytest
import torch

from models import CheckpointError, model_dict
from tests.golden.recipe import fill


def weights(name="resnet8", num_classes=10):
    return fill(model_dict[name](num_classes=num_classes).state_dict())


def saved(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def error_of(call, *args, **kwargs):
    with pytest.raises(CheckpointError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message
