"""torchvision's classification networks, `torchvision:NAME`, and its ImageNet weights.

Weights are IMAGENET1K_V1 (an older training than torchvision's newest), since those are the teachers of the
published ImageNet tables: ResNet34 of 73.31 and ResNet50 of 76.13 % top-1. torchvision fetches them into
torch.hub's folder (TORCH_HOME, by default ~/.cache/torch) and checks their hash.
"""
import re
import sys

from torch import nn

from helper.util.errors import printable
from models._base import ModelError
from models._wrapped import Wrapped

# Auxiliary outputs in training, and a loader that needs what a plain state dict does not hold.
LEFT_OUT = ("googlenet", "inception_v3", "mnasnet")
# The submodule that contains the blocks, where it is not the network itself.
TRUNKS = ("features", "trunk_output")


def names() -> list[str]:
    """The names that may follow 'torchvision:'."""
    from torchvision import models  # imported late: it takes as long as PyTorch

    return [name for name in models.list_models(module=models) if not name.startswith(LEFT_OUT)]


def build(name: str, num_classes: int) -> Wrapped:
    """A new network of a name of `names()`, initialised as torchvision does."""
    from torchvision import models

    network = models.get_model(name, weights=None, num_classes=num_classes)
    linear = [key for key, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == num_classes]
    return Wrapped(f"torchvision:{name}", network, num_classes, linear[-1] if linear else None, _blocks(network))


def pretrained(name: str) -> Wrapped:
    """The network with its ImageNet weights, fetched by torchvision where they are not in its folder yet.

    Raises ModelError where they cannot be fetched or read; nothing in them is executed.
    """
    from torchvision import models

    offered = models.get_model_weights(name)
    if "IMAGENET1K_V1" not in offered.__members__:
        raise ModelError(f"torchvision has no IMAGENET1K_V1 weights of {name}: choose another network")
    weights = offered["IMAGENET1K_V1"]
    place = "the folder hub/checkpoints of TORCH_HOME (default ~/.cache/torch)"
    try:
        state = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
        network = build(name, len(weights.meta["categories"]))
        network.load_state_dict({_today(key): value for key, value in state.items()})
    except Exception as error:  # urllib, the readers of PyTorch and load_state_dict each raise their own kinds
        raise ModelError(f"the weights of torchvision:{name} are not available ({printable(error)[:200]}): put "
                         f"{weights.url} into {place}, in place of a damaged file") from None
    return network


def _blocks(network):
    """The names of the trunk's parts that hold two convolutions or more: blocks, and groups of blocks."""
    trunk = next((name for name in TRUNKS if hasattr(network, name)), "")
    prefix = f"{trunk}." if trunk else ""
    return [prefix + name for name, part in network.get_submodule(trunk).named_children()
            if sum(isinstance(module, nn.Conv2d) for module in part.modules()) >= 2]


def _today(key):
    """A name in torchvision's older DenseNet files, as 'norm.1' for what is 'norm1' today."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)
