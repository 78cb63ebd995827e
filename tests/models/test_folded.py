"""A frozen network with its batch norms folded into its convolutions."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helper.util.nested import tensors
from models import Classifier, Outputs, build
from models._folded import folded
from models.precision import FLOAT32, Precision

# Batch norms that stay: in Wide ResNets those after a sum; those of timm that bring an activation.
LEFT = {"resnet8": 0, "resnet8x4": 0, "ResNet50": 0, "wrn_16_1": 7, "vgg8": 0, "MobileNetV1": 0, "MobileNetV2": 0,
        "ShuffleV1": 0, "ShuffleV2": 0, "torchvision:resnet18": 0, "timm:densenet121": 121}


def random_network(name):
    """In evaluation mode, with statistics that no fresh network has."""
    torch.manual_seed(0)
    network = build(name, 10).eval()
    for norm in batch_norms(network):
        nn.init.normal_(norm.running_mean, std=0.1)
        for values in (norm.running_var, norm.weight):
            nn.init.uniform_(values, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
    return network


def batch_norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def distance(a, b):
    return ((a - b).norm() / a.norm()).item()


@torch.no_grad()
def outputs(network):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return network(images, named=True, cam=True)


@pytest.mark.parametrize("name", LEFT)
def test_every_output_stays_within_rounding(name):
    pytest.importorskip(name.split(":")[0]) if ":" in name else None
    network = random_network(name)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    other = folded(network, torch.zeros(1, 3, 32, 32))
    assert len(batch_norms(other)) == LEFT[name]
    pairs = list(zip(tensors(outputs(network)), tensors(outputs(other)), strict=True))
    assert len(pairs) > 6 and max(distance(a, b) for a, b in pairs) < 5e-6
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


class Odd(Classifier):
    """Reads maps in ways that forbid the folding."""

    def __init__(self, how):
        super().__init__("odd")
        self.how = how
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 10)

    def outputs(self, x):
        between = self.conv(x)
        x = self.bn(between)
        if self.how == "another reader":
            x = x + between
        elif self.how == "called twice":
            x = self.bn(self.conv(x))
        elif self.how == "batch norm called twice":
            x = self.bn(x)
        pooled = x.mean((2, 3))
        return Outputs(self.fc(pooled), pooled, stages=(between,) if self.how == "reported" else (x,))


@pytest.mark.parametrize("how, left", [("", 0), ("another reader", 1), ("called twice", 1), ("reported", 1),
                                       ("batch norm called twice", 1), ("a hook", 1)])
def test_a_batch_norm_that_something_else_depends_on_stays(how, left):
    network = Odd(how).eval()
    nn.init.normal_(network.bn.running_mean)
    if how == "a hook":
        network.bn.register_forward_hook(lambda module, inputs, result: F.relu(result))
    other = folded(network, torch.zeros(1, 3, 32, 32))
    assert len(batch_norms(other)) == left
    for a, b in zip(tensors(outputs(network)), tensors(outputs(other)), strict=True):
        assert torch.equal(a, b) if left else torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_1", "MobileNetV2"])
def test_in_bfloat16_it_is_as_near_to_float32_as_the_network_itself(name):
    network, bf16 = random_network(name), Precision(bf16=True)
    images, fields = torch.randn(16, 3, 32, 32), frozenset({"logits", "stages", "preacts", "cam"})
    frozen = bf16.frozen(network, images[:1])
    with torch.no_grad():
        exact = FLOAT32.outputs(network, images, fields)
        plain, ours = (list(tensors(bf16.outputs(model, images, fields))) for model in (network, frozen))
    assert {module.weight.dtype for module in frozen.modules() if isinstance(module, nn.Conv2d)} == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in ours)
    assert any(not torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    for a, b, c in zip(tensors(exact), plain, ours, strict=True):
        assert distance(a, c) < 1.25 * distance(a, b) < 0.05


def test_in_float32_it_is_the_network_itself():
    network = random_network("resnet8")
    assert FLOAT32.frozen(network, torch.zeros(1, 3, 32, 32)) is network
