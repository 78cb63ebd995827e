"""timm's networks, `timm:NAME`, where timm is installed, and their pretrained weights.

NAME may carry a tag, as in `timm:resnet18.a1_in1k`; timm fetches the weights into the Hugging Face hub's folder
(HF_HOME). Stages are what timm's `feature_info` names, as far as they are maps of channels first.
"""
import importlib.util
import logging

from torch import nn

from helper.util.errors import printable
from models._base import ModelError
from models._wrapped import Wrapped

INSTALL = "timm is not installed: pip install timm (requirements-extras.txt has the version)"


def names() -> list[str]:
    """The names that may follow 'timm:', without tags and with them. Raises ModelError where timm is missing."""
    timm = _timm()
    return timm.list_models() + timm.list_pretrained()


def build(name: str, num_classes: int) -> Wrapped:
    """A new network of a name of `names()`, initialised as timm does."""
    return _wrapped(name, _timm().create_model(name, num_classes=num_classes))


def pretrained(name: str) -> Wrapped:
    """The network with its weights and classes, fetched by timm where they are not in its folder yet.

    Raises ModelError where they are not available.
    """
    timm = _timm()
    print(f"timm looks for the weights of {name} in the Hugging Face hub's folder, then on the hub", flush=True)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # or it prints its retries before our line
    try:
        return _wrapped(name, timm.create_model(name, pretrained=True))
    except Exception as error:  # the hub, its readers and timm each raise their own kinds
        raise ModelError(f"the weights of timm:{name} are not available ({printable(error)[:300]}): timm reads them "
                         "from the Hugging Face hub, or from its folder (HF_HOME)") from None


def _timm():
    if importlib.util.find_spec("timm") is None:
        raise ModelError(INSTALL)
    import timm

    return timm


def _wrapped(name, network):
    head = network.get_classifier() if hasattr(network, "get_classifier") else None
    linear = [key for key, module in network.named_modules() if module is head and isinstance(module, nn.Linear)]
    return Wrapped(f"timm:{name}", network, network.num_classes, linear[0] if linear else None, _maps(network))


def _maps(network):
    """The names in feature_info, the stem's first; none where what follows are single layers (VGG), not blocks."""
    parts = dict(network.named_modules())
    named = [info["module"] for info in getattr(network, "feature_info", ()) if info["module"] in parts]
    return named if all(any(parts[name].children()) for name in named[1:]) else []
