"""Every network at 64 and 224 pixels, and MobileNetV1, of which there are no golden numbers."""
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models import build, load_model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "models.json").read_text())
# Of a family the shallow ones: sizes do not depend on depth.
SHALLOW = [name for name in GOLDEN if len(GOLDEN[name]["state_dict"]) < 200]


@pytest.mark.parametrize("name", SHALLOW)
def test_every_network_takes_images_of_64_pixels(name):
    """The maps are twice those of 32 pixels, the vectors the same: on the meta device, where nothing is computed."""
    with torch.device("meta"):
        features, logits = build(name, 7).eval()(torch.empty(2, 3, 64, 64), is_feat=True)
    assert logits.shape == (2, 7)
    *maps, pooled = GOLDEN[name]["feat_shapes"]
    expected = [[b, c, 2 * h, 2 * w] for b, c, h, w in maps]
    if name.startswith("vgg"):  # halves once more from 64 pixels on
        expected[-1] = maps[-1]
    assert [list(f.shape) for f in features] == [*expected, pooled]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "ResNet50", "MobileNetV1"])
def test_224_pixels(name):
    with torch.device("meta"):
        out = build(name, 5).eval()(torch.empty(1, 3, 224, 224), named=True)
    assert out.logits.shape == (1, 5) and out.stages[-1].shape[2] == {"vgg8": 14, "ResNet50": 28, "MobileNetV1": 7}.get(
        name, 56)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "ShuffleV1", "MobileNetV1"])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_pooling_is_the_mean_over_the_whole_map(name, size):
    network = build(name, 4).eval()
    with torch.no_grad():
        out = network(torch.randn(2, 3, *size), named=True)
    assert torch.allclose(out.pooled, out.stages[-1].mean((2, 3)), rtol=1e-4, atol=1e-6)


def test_mobilenetv1_is_the_papers():
    """4.2 million parameters (table 8 of the paper), and the maps of its table 1 at 224 pixels."""
    with torch.device("meta"):
        network = build("MobileNetV1", 1000).eval()
        out = network(torch.empty(1, 3, 224, 224), named=True)
    assert sum(p.numel() for p in network.parameters()) == 4_231_976
    assert [tuple(f.shape[1:]) for f in (out.stem, *out.stages)] == [
        (32, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7)]
    assert list(network.state_dict())[:2] == ["model.0.0.weight", "model.0.1.weight"]
    assert {"model.13.3.weight", "model.13.4.running_var", "fc.weight", "fc.bias"} <= set(network.state_dict())


def test_mobilenetv1_offers_the_interface():
    torch.manual_seed(0)
    network = build("MobileNetV1", 5).train()
    out = network(torch.randn(4, 3, 32, 32), named=True)
    for stage, preact in zip(out.stages, out.preacts, strict=True):
        assert preact.min() < 0 and torch.equal(stage, F.relu(preact))
    assert torch.equal(network.fc(out.pooled), out.logits)
    F.cross_entropy(out.logits, torch.arange(4)).backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())
    assert len(network.feature_parameters()) == len(list(network.parameters())) - 2


def test_a_bare_mobilenetv1_loads(tmp_path):
    torch.save(build("MobileNetV1", 12).state_dict(), tmp_path / "MobileNetV1.pth")
    network, checkpoint = load_model(tmp_path / "MobileNetV1.pth")
    assert network.name == "MobileNetV1" and checkpoint.num_classes == 12
