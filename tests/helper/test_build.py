"""What a run is made of: refusals before any training."""
import pytest
import torch

import dataset
from helper import build
from helper.cli import teacher_options
from helper.util.errors import UsageError

CPU = torch.device("cpu")


def make(model, batch_size):
    """Digits have 1,442 training images."""
    options = teacher_options(["--model", model, "--dataset", "digits", "--batch_size", str(batch_size)])
    return build.make_teacher(options, dataset.load("digits", ""), CPU)


@pytest.mark.parametrize("batch_size, where", [(131, "the last batch"), (1, "a batch")])
def test_a_batch_of_one_image_on_which_a_network_cannot_train_is_found_before_training(batch_size, where):
    with pytest.raises(UsageError, match=f"{where} has a single image, on which MobileNetV1 cannot .*--batch_size"):
        make("MobileNetV1", batch_size)


def test_other_batches_and_networks_train_and_their_statistics_are_untouched():
    make("MobileNetV1", 128)
    trainee = make("resnet8", 131)
    assert not any(buffer.any() for name, buffer in trainee.network.named_buffers() if name.endswith("running_mean"))
