"""What a run is made of: refusals before any training, and what its networks become."""
import pytest
import torch
from torch import nn

import dataset
import models
from helper import build
from helper.build import convert_sync_batchnorm
from helper.cli import teacher_options
from helper.util.errors import UsageError
from helper.util.nested import tensors

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


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


class OwnBatchNorm(nn.BatchNorm2d):
    """A library's own kind, of whose forward nothing is known."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("name", ["resnet8", "timm:mobilenetv3_small_050", "timm:densenet121"])
def test_sync_bn_keeps_activations_hooks_and_values(name):
    """Batch norm in evaluation is the same layer by layer, so every output is; also those that hooks collect."""
    pytest.importorskip(name.split(":")[0]) if ":" in name else None
    torch.manual_seed(0)
    network, images = models.build(name, 10).eval(), torch.randn(2, 3, 32, 32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    state, norms = {key: value.clone() for key, value in network.state_dict().items()}, count(network, nn.BatchNorm2d)
    with torch.no_grad():
        before = network(images, named=True)
        convert_sync_batchnorm(network, CUDA)
        after = network(images, named=True)
    assert count(network, nn.SyncBatchNorm) == norms > 0 == count(network, nn.BatchNorm2d)
    converted = network.state_dict()
    assert list(converted) == list(state) and all(torch.equal(converted[key], state[key]) for key in state)
    pairs = list(zip(tensors(before), tensors(after), strict=True))
    assert len(pairs) > 2
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_sync_bn_leaves_alone_what_it_does_not_know_and_needs_cuda():
    network = nn.Sequential(nn.BatchNorm1d(2), OwnBatchNorm(2), nn.Sequential(nn.BatchNorm3d(2)))
    convert_sync_batchnorm(network, CUDA)
    assert [type(m) for m in (network[0], network[1], network[2][0])] == [
        nn.SyncBatchNorm, OwnBatchNorm, nn.SyncBatchNorm]
    with pytest.raises(UsageError, match=r"--sync_bn: .* needs CUDA"):
        convert_sync_batchnorm(network, torch.device("cpu"))


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())
