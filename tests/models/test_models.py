"""The networks against the golden numbers of the published ones, and the interface they share."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import Outputs, model_dict
from models._layers import shuffle_channels
from models.resnet import ResNet
from models.wrn import WideResNet
from tests.golden.recipe import fill, model_input

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS = json.loads((GOLDEN / "models.json").read_text())
NUMBERS = dict(np.load(GOLDEN / "models.npz"))
WITH_NUMBERS = sorted({key.split("/")[0] for key in NUMBERS})

every_model = pytest.mark.parametrize("name", FACTS)
# The smallest of each family, for what does not depend on depth or width.
one_per_family = pytest.mark.parametrize(
    "name", ["resnet8", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
)


def filled(name):
    network = model_dict[name](num_classes=100)
    network.load_state_dict(fill(network.state_dict()))
    return network.eval()


def stats(features):
    flat = [f.double().flatten() for f in features]
    return np.array([[f.mean(), f.std(), f.abs().max(), f[0], f[-1]] for f in flat])


def assert_agree(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_exactly_the_published_models_are_offered():
    assert set(model_dict) == {*FACTS, "MobileNetV1"}


@every_model
def test_state_dict_parameters_and_feature_shapes_are_the_published(name):
    with torch.device("meta"):
        network = model_dict[name]()
        features, _ = network.eval()(torch.empty(2, 3, 32, 32), is_feat=True)
    assert [[k, list(v.shape)] for k, v in network.state_dict().items()] == FACTS[name]["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == FACTS[name]["params"]
    assert [list(f.shape) for f in features] == FACTS[name]["feat_shapes"]
    assert network.name == name


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_numbers_are_the_published(name):
    network = filled(name)
    with torch.no_grad():
        features, logits = network(model_input(), is_feat=True)
        preacts, logits_again = network(model_input(), is_feat=True, preact=True)
    assert_agree(logits.numpy(), NUMBERS[f"{name}/logits"])
    # Row by row: a feature of small values is held to its own scale, not to the largest feature's.
    for kind, got in (("feat", stats(features)), ("preact", stats(preacts))):
        for row, expected in zip(got, NUMBERS[f"{name}/{kind}_stats"], strict=True):
            assert_agree(row, expected)
    assert torch.equal(logits, logits_again)


@one_per_family
def test_a_stage_is_the_relu_of_its_preactivation(name):
    """Fails where an in-place ReLU overwrites the pre-activation, or where both are the same tensor."""
    network = filled(name)
    with torch.no_grad():
        out = network(model_input(), named=True)
    assert len(out.preacts) == len(out.stages)
    if name == "MobileNetV2":
        assert all(p is s for p, s in zip(out.preacts, out.stages, strict=True))
        return
    for i, (preact, stage) in enumerate(zip(out.preacts, out.stages, strict=True)):
        assert preact.min() < 0
        if name.startswith("wrn"):
            bn = [network.block2.layer[0].bn1, network.block3.layer[0].bn1, network.bn1][i]
            assert torch.equal(preact, bn(stage))
        elif name == "ShuffleV2":
            assert torch.equal(stage, shuffle_channels(F.relu(preact), 2))
        else:
            assert torch.equal(stage, F.relu(preact))


def test_wrn_updates_each_running_statistic_once_per_step():
    network = model_dict["wrn_16_1"]().train()
    network(torch.randn(4, 3, 32, 32), is_feat=True, preact=True)
    counts = [int(v) for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")]
    assert set(counts) == {1}


@one_per_family
def test_the_ways_to_call_a_network_agree(name):
    network = filled(name)
    x = model_input()
    with torch.no_grad():
        logits, out, (features, logits_feat) = network(x), network(x, named=True), network(x, is_feat=True)
    assert isinstance(out, Outputs)
    assert torch.equal(logits, out.logits) and torch.equal(logits, logits_feat)
    assert isinstance(features, list)
    assert all(map(torch.equal, features, [out.stem, *out.stages, out.pooled]))
    with torch.no_grad():
        assert torch.equal(getattr(network, network.head_name)(out.pooled), logits)


@one_per_family
def test_pooling_is_the_published_to_the_last_bit(name):
    network, seen = filled(name), {}
    last = {"MobileNetV2": "conv2", "ShuffleV2": "bn2", "wrn_16_1": "bn1"}.get(name)
    if last:
        getattr(network, last).register_forward_hook(lambda module, args, out: seen.update(last=F.relu(out)))
    with torch.no_grad():
        out = network(model_input(), named=True)
    before = seen.get("last", out.stages[-1])
    if name in ("ResNet50", "vgg8"):
        pooled = F.adaptive_avg_pool2d(before, 1)
    else:
        window = {"resnet8": 8, "wrn_16_1": 8, "MobileNetV2": 2, "ShuffleV1": 4, "ShuffleV2": 4}[name]
        pooled = F.avg_pool2d(before, window)
    assert torch.equal(out.pooled, pooled.flatten(1))


@one_per_family
@pytest.mark.parametrize("size", [64, 224])
def test_larger_images_pass(name, size):
    with torch.device("meta"):
        network = model_dict[name](num_classes=7).eval()
        out = network(torch.empty(2, 3, size, size), named=True)
    assert out.logits.shape == (2, 7)
    assert out.pooled.shape[1:] == tuple(FACTS[name]["feat_shapes"][-1][1:])


@one_per_family
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    network = model_dict[name](num_classes=5).train()
    F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        # A bias right before a batch norm has no effect, and only rounding as its gradient.
        if not (name == "vgg8" and key.endswith("0.bias")):
            assert parameter.grad.abs().max() > 0, key


@one_per_family
def test_preactivations_and_features_carry_gradients(name):
    """What the methods on feature maps rely on, in training mode."""
    torch.manual_seed(0)
    network = model_dict[name]().train()
    out = network(torch.randn(2, 3, 32, 32), named=True)
    sum(f.square().mean() for f in (*out.stages, *out.preacts, out.stem, out.pooled)).backward()
    assert all(p.grad is not None for p in network.feature_parameters())


# The published feature modules end with the last stage.
AFTER_STAGES = {"wrn": ("bn1.",), "ShuffleV2": ("conv2.", "bn2."), "MobileNetV2": ("conv2.",)}


@every_model
def test_feature_parameters_are_those_up_to_the_last_stage(name):
    with torch.device("meta"):
        network = model_dict[name](num_classes=11)
    names = {id(p): key for key, p in network.named_parameters()}
    kept = [names[id(p)] for p in network.feature_parameters()]
    last = tuple(key for key, _ in FACTS[name]["state_dict"][-2:])  # weight and bias of the linear layer
    last += AFTER_STAGES.get("wrn" if "wrn" in name else name, ())
    assert kept == [key for key in names.values() if not key.startswith(last)]
    assert len(kept) <= len(names) - 2


@one_per_family
def test_the_cam_is_the_classifier_at_each_place_of_the_last_map(name):
    network = model_dict[name](num_classes=5)
    network.load_state_dict(fill(network.state_dict()))
    out = network.eval()(model_input(), named=True, cam=True)
    classifier = network.classifier_layer()
    assert out.cam.shape == (2, 5, *out.last.shape[2:])
    torch.testing.assert_close(out.last.mean((2, 3)), out.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.cam.mean((2, 3)) + classifier.bias, out.logits, atol=1e-4, rtol=1e-4)
    expected = out.last[1, :, 0, 0] @ classifier.weight.T
    torch.testing.assert_close(out.cam[1, :, 0, 0], expected, atol=1e-4, rtol=1e-4)
    assert network(model_input(), named=True).cam is None


def test_shufflev2s_preactivations_come_before_the_channels_are_shuffled():
    out = filled("ShuffleV2")(model_input(), named=True)
    for preact in out.preacts:
        passed_through, own = preact.chunk(2, dim=1)
        assert passed_through.min() >= 0 and own.min() < 0


@one_per_family
def test_initial_convolutions(name):
    torch.manual_seed(0)
    network = model_dict[name]()
    checked = 0
    for key, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if name.startswith("Shuffle"):
            # PyTorch's default is uniform with this bound, so that its deviation is bound/sqrt(3).
            bound = 1 / math.sqrt(layer.weight[0].numel())
            expected = bound / math.sqrt(3)
            assert layer.weight.abs().max() <= bound * 1.0001, key
        else:
            expected = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))
        if layer.bias is not None:
            assert not layer.bias.any(), key
        if layer.weight.numel() > 4000:
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.06), key
            assert abs(layer.weight.mean().item()) < 0.06 * expected, key
            checked += 1
    assert checked > 3


@one_per_family
def test_initial_batch_norms_and_linear_layer(name):
    torch.manual_seed(0)
    network = model_dict[name](num_classes=100)
    for key, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and not layer.bias.any(), key
    (linear,) = [m for m in network.modules() if isinstance(m, nn.Linear)]
    bound = 1 / math.sqrt(linear.in_features)
    if name in ("vgg8", "MobileNetV2"):
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.03)
        # Normal, not uniform: some of the values lie far out.
        assert linear.weight.abs().max() > 0.03
    else:
        assert linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert bool(linear.bias.any()) == (name not in ("vgg8", "MobileNetV2", "wrn_16_1"))


@pytest.mark.parametrize("family, depth", [(ResNet, 9), (ResNet, 2), (WideResNet, 17), (WideResNet, 4)])
def test_impossible_depths_are_refused(family, depth):
    width = (16, 16, 32, 64) if family is ResNet else 1
    with pytest.raises(ValueError, match=f"not {depth}"):
        family("x", depth, width, 10)
