"""The networks by name: the closed set of this repository, and those of other libraries by a prefix.

`model_dict` holds the networks of the CRD benchmark, `imagenet_model_dict` what the ImageNet pairs add; `build` and
`pretrained` also take `torchvision:NAME` and `timm:NAME`.
"""
import difflib

from models import from_timm, from_torchvision
from models._base import Classifier, ModelError
from models.mobilenetv1 import MobileNetV1
from models.mobilenetv2 import MobileNetV2
from models.resnet import (
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from models.resnet50 import ResNet50
from models.shufflenetv1 import ShuffleV1
from models.shufflenetv2 import ShuffleV2
from models.vgg import vgg8, vgg11, vgg13, vgg16, vgg19
from models.wrn import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

model_dict = {
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet8x4": resnet8x4,
    "resnet32x4": resnet32x4,
    "ResNet50": ResNet50,
    "wrn_16_1": wrn_16_1,
    "wrn_16_2": wrn_16_2,
    "wrn_40_1": wrn_40_1,
    "wrn_40_2": wrn_40_2,
    "vgg8": vgg8,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}

imagenet_model_dict = {
    "MobileNetV1": MobileNetV1,
}

# Other libraries, by the prefix of their names.
ZOOS = {"torchvision": from_torchvision, "timm": from_timm}


def own_models() -> dict:
    """Every network written here, by name."""
    return model_dict | imagenet_model_dict


def check_name(name: str) -> str:
    """The name of a network, if it is one; ModelError, with those most alike, if not."""
    zoo, own = _split(name)
    known = own_models() if zoo is None else [f"{zoo}:{theirs}" for theirs in ZOOS[zoo].names()]
    if name in known:
        return name
    offered = [*own_models(), *(f"{prefix}:NAME" for prefix in ZOOS)] if zoo is None else known
    alike = difflib.get_close_matches(name, offered, 3)
    hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
    if zoo is not None:
        raise ModelError(f"{zoo} offers no network {own[:80]!r} here{hint}")
    raise ModelError(f"{name[:80]!r} is no network{hint or ':'} choose from {', '.join(offered)}")


def build(name: str, num_classes: int) -> Classifier:
    """A new network of any name. Raises ModelError for an unknown one."""
    zoo, own = _split(check_name(name))
    return own_models()[name](num_classes=num_classes) if zoo is None else ZOOS[zoo].build(own, num_classes)


def has_prefix(name: str) -> bool:
    """Whether a name is of another library."""
    return _split(name)[0] is not None


def pretrained(name: str) -> Classifier:
    """The network of a prefixed name with the weights that its library publishes, fetched if need be.

    Raises ModelError for an unknown name, and where the weights cannot be had.
    """
    zoo, own = _split(check_name(name))
    return ZOOS[zoo].pretrained(own)


def _split(name):
    """'torchvision:resnet18' -> ('torchvision', 'resnet18'); a name of our own -> (None, name)."""
    prefix, colon, own = name.partition(":")
    return (prefix, own) if colon and prefix in ZOOS else (None, name)
