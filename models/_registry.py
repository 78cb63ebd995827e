"""The networks by name: those of this folder, found by themselves, and those of other libraries by a prefix.

`model_dict` maps a name to the factory (num_classes) -> Classifier that a file of this folder names in `__all__`; a new
file is a new network. `build` and `pretrained` also take `torchvision:NAME` and `timm:NAME`.
"""
import difflib
import importlib
import os
import pkgutil
from collections.abc import Callable

from models import _timm, _torchvision
from models._base import Classifier, ModelError

# The files of this folder that define no network, in addition to those that start with an underscore.
SERVICES = ("checkpoint", "precision")
# Other libraries, by the prefix of their names.
ZOOS = {"torchvision": _torchvision, "timm": _timm}


def _found() -> dict[str, Callable[..., Classifier]]:
    factories: dict[str, Callable[..., Classifier]] = {}
    first: dict[str, str] = {}
    for file in sorted(found.name for found in pkgutil.iter_modules([os.path.dirname(__file__)])):
        if file.startswith("_") or file in SERVICES:
            continue
        module = importlib.import_module(f"models.{file}")
        names = getattr(module, "__all__", ())
        if not names:
            raise ValueError(f"{module.__name__} names no network in __all__")
        for name in names:
            if name in factories:
                raise ValueError(f"{first[name]} and {module.__name__} both define the network '{name}'")
            factories[name], first[name] = getattr(module, name), module.__name__
    return factories


model_dict = _found()


def check_name(name: str) -> str:
    """The name of a network, if it is one; ModelError, with those most alike, if not."""
    zoo, own = _split(name)
    known = list(model_dict) if zoo is None else [f"{zoo}:{theirs}" for theirs in ZOOS[zoo].names()]
    if name in known:
        return name
    offered = [*model_dict, *(f"{prefix}:NAME" for prefix in ZOOS)] if zoo is None else known
    # A library's network of this very name is what is meant, rather than one here of a name alike.
    alike = [f"{prefix}:{name}" for prefix in ("torchvision",) if zoo is None and name in ZOOS[prefix].names()]
    alike = alike or difflib.get_close_matches(name, offered, 3)
    hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
    if zoo is not None:
        raise ModelError(f"{zoo} offers no network {own[:80]!r} here{hint}")
    raise ModelError(f"{name[:80]!r} is no network{hint or ':'} choose from {', '.join(offered)}")


def build(name: str, num_classes: int) -> Classifier:
    """A new network of any name. Raises ModelError for an unknown one."""
    zoo, own = _split(check_name(name))
    return model_dict[name](num_classes=num_classes) if zoo is None else ZOOS[zoo].build(own, num_classes)


def has_prefix(name: str) -> bool:
    """Whether a name is of another library."""
    return _split(name)[0] is not None


def pretrained(name: str) -> Classifier:
    """The network of a prefixed name with the weights that its library publishes, fetched if need be.

    Raises ModelError for an unknown name, and where the weights are not available.
    """
    zoo, own = _split(check_name(name))
    if zoo is None:
        raise ModelError(f"{name} has no published weights here: give a checkpoint")
    return ZOOS[zoo].pretrained(own)


def _split(name: str) -> tuple[str | None, str]:
    """'torchvision:resnet18' -> ('torchvision', 'resnet18'); a name of our own -> (None, name)."""
    prefix, colon, own = name.partition(":")
    return (prefix, own) if colon and prefix in ZOOS else (None, name)
