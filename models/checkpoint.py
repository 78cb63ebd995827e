"""Reading checkpoints: the files written here, the published ones, and plain state dicts.

A checkpoint is a dict with the state dict under `model` and, where known, `epoch`, `accuracy` and `model_name`;
published files lack the last, and their network is found by the names of the folder and the file, or by the shapes of
the weights. Files come from anywhere: nothing in them is ever executed (`weights_only=True`), nothing is built before
its size is known to be harmless, and whatever is wrong with one is a CheckpointError of one line.
"""
import os
import pickle
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helper.util.errors import UserError, printable
from helper.util.files import ZIP, Damaged, open_regular, read_torch
from models._base import Classifier, ModelError
from models._registry import ZOOS, build, check_name, has_prefix, model_dict, pretrained

# What the wrappers of data parallelism and of compilation put before every key.
WRAPPERS = ("module.", "_orig_mod.")
# How a file of torch.save's former format begins: a pickled magic number.
LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
# A counter of batch norm, which files of old PyTorch versions lack and nothing here reads.
COUNTER = "num_batches_tracked"
# Bytes that are read, and classes that a network is built with, at most.
SIZE_LIMIT, CLASSES_LIMIT = 8 * 2**30, 100_000


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says what is wrong, then what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file.

    state_dict: the weights on the CPU, without the prefixes of wrappers; all of them finite
    epoch: the number of epochs trained, if recorded
    accuracy: the test accuracy in percent, if recorded
    model_name: the network's name, if recorded; not yet compared with the known ones
    num_classes: the rows of the last layer, the only matrix among the weights of every network here; where there
        is no such matrix or there are several, the recorded number, or the rows of the last one
    """

    state_dict: dict[str, Tensor]
    epoch: int | None = None
    accuracy: float | None = None
    model_name: str | None = None
    num_classes: int | None = None


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """The checkpoint in the file `path`: {'model': ...}, {'state_dict': ...} or a state dict itself.

    Raises CheckpointError, and nothing else, for any file that is none of these.
    """
    content = _load(path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path} has no state dict inside but a {kind}: save network.state_dict()")
    record = content
    state_dict = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict)), None)
    if state_dict is None:
        state_dict, record = content, {}
        if not any(isinstance(value, Tensor) and value.ndim for value in content.values()):
            raise CheckpointError(f"{path} has no state dict inside: it needs one under 'model' or 'state_dict', but "
                                  f"holds {_listed(content) or 'nothing'}")
    if not state_dict:
        raise CheckpointError(f"{path} has an empty state dict: save the network's again")
    state_dict = _unwrapped(_checked(path, state_dict))
    classes = _num_classes(state_dict, record.get("num_classes"))
    if classes is not None and classes > CLASSES_LIMIT:
        raise CheckpointError(f"{path} claims {classes:,} classes, more than {CLASSES_LIMIT:,}: take another file")
    epoch, name = record.get("epoch"), record.get("model_name")
    return Checkpoint(state_dict, epoch if _is_count(epoch) else None, _percent(record.get("accuracy")),
                      name if isinstance(name, str) else None, classes)


def model_name_from(path: str | os.PathLike, checkpoint: Checkpoint) -> str:
    """The name of the network whose weights `checkpoint`, read from `path`, holds.

    In this order: the name in the checkpoint; the longest name that the folder's begins with, followed
    by '_' or its end (wrn_40_2_vanilla, torchvision:resnet18_mine); the one name that is a
    word of the file's (cifar100_resnet56-f2eff4c8.pt); the one network of this repository with weights of these shapes.

    Raises CheckpointError where none of these applies.
    """
    if checkpoint.model_name is not None:
        return _known(checkpoint.model_name, f"{path} says that it is a ")
    named = name_in_path(path)
    if named is not None:
        return named
    fitting = _fitting(checkpoint)
    if len(fitting) == 1:
        return fitting[0]
    raise CheckpointError(f"{path}: neither the names of folder and file nor the weights identify the network; name "
                          f"the folder after one of {', '.join(model_dict)}")


def name_in_path(path: str | os.PathLike) -> str | None:
    """The name of a network that its checkpoint's path tells, or that `path` itself is, as torchvision:resnet34; None
    where it tells none. No file is opened."""
    if names_weights(path):
        return str(path)
    absolute = Path(path).absolute()
    folder = absolute.parent.name
    starts = [name for name in _names_for(folder) if f"{folder}_".startswith(f"{name}_")]
    words = [name for name in model_dict if re.search(rf"(?<![A-Za-z0-9]){name}(?![A-Za-z0-9])", absolute.name)]
    if starts:
        return max(starts, key=len)
    return words[0] if len(words) == 1 else None


def load_model(path: str | os.PathLike, model_name: str | None = None,
               num_classes: int | None = None) -> tuple[Classifier, Checkpoint]:
    """The network in the file `path`, in evaluation mode on the CPU, and its Checkpoint.

    path: or a name such as torchvision:resnet34, for the network with the weights that its library publishes
    model_name: its name; found by `model_name_from` if not given
    num_classes: the number of classes that the caller needs; any if not given

    The global random state is left as it was, so that a run's random numbers do not depend on its teacher.
    Raises CheckpointError for a bad file, an unknown name, weights that do not fit the network exactly or give outputs
    that are not finite, or another number of classes; ModelError where a library's weights are not available.
    """
    if names_weights(path):
        return _published(str(path), num_classes)
    if model_name is not None:
        _known(model_name, "there is no ")
    checkpoint = read_checkpoint(path)
    name = model_name_from(path, checkpoint) if model_name is None else model_name
    differences = _differences(checkpoint, name)
    if differences:
        fitting = _fitting(checkpoint)
        hint = (f"its weights fit {fitting[0]}: name that, as by a folder {fitting[0]}_vanilla" if fitting else
                "its weights fit no network here")
        raise CheckpointError(f"{path} does not fit {name}: {differences}; {hint}")
    _check_classes(path, checkpoint, num_classes)
    network = _built(name, checkpoint.num_classes or 100)
    network.load_state_dict(checkpoint.state_dict, strict=True)
    _check_outputs(path, network.eval())
    return network, checkpoint


def names_weights(path: str | os.PathLike) -> bool:
    """Whether `path` is not a file but a library's network, as torchvision:resnet34."""
    return has_prefix(str(path)) and "/" not in str(path) and not Path(path).exists()


def _published(name, num_classes):
    with torch.random.fork_rng(devices=[]):
        network = pretrained(name).eval()
    state = {key: value.detach() for key, value in network.state_dict().items()}
    checkpoint = Checkpoint(state, model_name=name, num_classes=_num_classes(state, network.num_classes))
    _check_classes(name, checkpoint, num_classes)
    return network, checkpoint


def _check_classes(path, checkpoint, num_classes):
    if num_classes is not None and checkpoint.num_classes != num_classes:
        raise CheckpointError(f"{path} has {checkpoint.num_classes} classes, {num_classes} are expected: take a "
                              "checkpoint trained on this data set")


@torch.no_grad()
def _check_outputs(path, network):
    """Finite weights may still give NaN: a running variance below 0, or values near the limit of float32."""
    size = 64 if has_prefix(network.name) else 32  # the least that networks made for larger images take
    try:
        logits = network(torch.linspace(-2, 2, 3 * size**2).view(1, 3, size, size))
    except (AssertionError, RuntimeError, ModelError):
        return  # it takes images of another size alone
    if not logits.isfinite().all():
        raise CheckpointError(f"{path}: the outputs of {network.name} with these weights are NaN or infinite, so its "
                              "training diverged; take a checkpoint from before")


def _num_classes(state_dict: dict[str, Tensor], recorded: Any) -> int | None:
    """See Checkpoint; recorded: the number in the file, of any type, which counts if some weight has so many rows."""
    matrices = [value for value in state_dict.values() if value.ndim == 2]
    rows = {len(value) for value in state_dict.values() if value.ndim}
    if len(matrices) != 1 and _is_count(recorded) and recorded in rows:
        return recorded
    return len(matrices[-1]) if matrices else None


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _names_for(folder: str) -> list[str]:
    """The names that a folder may begin with; another library is asked for its own only where its prefix is there."""
    zoo = folder.partition(":")[0]
    if not has_prefix(folder):
        return list(model_dict)
    try:
        return [f"{zoo}:{name}" for name in ZOOS[zoo].names()]
    except ModelError as error:
        raise CheckpointError(f"the folder {folder} names a network of {zoo}, and {error}") from None


def _built(name: str, num_classes: int) -> Classifier:
    """A new network; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        return build(name, num_classes)


def _load(path):
    """The content of the file, whatever it is, as far as it is tensors and plain data."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise CheckpointError(f"{path} is empty: fetch or write it again")
            if size > SIZE_LIMIT:
                raise CheckpointError(f"{path} has more than {SIZE_LIMIT / 2**30:.0f} GiB: save the state dict alone")
            with warnings.catch_warnings():
                # The readers' warnings about the bytes would be printed before our own line.
                warnings.simplefilter("ignore")
                try:
                    return read_torch(file)
                except Damaged as error:
                    file.seek(0)
                    raise CheckpointError(f"{path} {_diagnosis(error.__cause__, file.read(len(LEGACY)))}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: check the path, or fetch the published teachers with "
                              "scripts/fetch_pretrained_teachers.sh") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a directory: name a checkpoint in it") from None
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path!r} cannot be read: {reason}") from None


def _diagnosis(error: BaseException | None, start: bytes) -> str:
    """Why the file was refused, from torch.load's error and the file's first bytes."""
    foreign = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    if foreign:
        return (f"pickles more than tensors and plain data ({_shown(foreign[1])}), which could run any code, and is "
                "not opened: take a file with the state dict alone, such as a ckpt_epoch_*.pth")
    if start.startswith((ZIP, LEGACY)):
        return f"is truncated or corrupt ({printable(error)[:100] or type(error).__name__}): fetch or write it again"
    return "is not a PyTorch checkpoint: it may be a failed download; fetch or write it again"


def _checked(path, state_dict: dict) -> dict[str, Tensor]:
    """The state dict, if it is one: names, and dense real tensors without NaN and infinities."""
    for key, value in state_dict.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path}: the key {_shown(key)} of its state dict is not a string: save it again")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {_shown(key)} in its state dict is not a tensor but of type "
                                  f"{type(value).__name__}; save network.state_dict() alone")
        if not _is_plain(value):
            raise CheckpointError(f"{path}: {_shown(key)} is not a dense tensor of real numbers; save the network "
                                  "before it is quantised or pruned to sparse tensors")
        if value.numel() == 0:
            raise CheckpointError(f"{path}: {_shown(key)} of shape {tuple(value.shape)} has no elements; save the "
                                  "network again")
        if value.is_floating_point() and not value.detach().float().isfinite().all():
            raise CheckpointError(f"{path}: {_shown(key)} holds NaN or infinite values, so the training diverged; "
                                  "take a checkpoint from before")
    return state_dict


def _is_plain(value: Tensor) -> bool:
    """Whether every element is a real number with its own place in memory."""
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    if value.is_quantized or value.is_complex():
        return False
    # A crafted tensor can claim any size over one repeated element.
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _unwrapped(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS * 2:  # a compiled network in a parallel one, or the other way round
        if all(key.startswith(wrapper) for key in state_dict):
            state_dict = {key.removeprefix(wrapper): value for key, value in state_dict.items()}
    return dict(state_dict)


def _percent(value) -> float | None:
    """A recorded accuracy as a number; published files hold it as a tensor."""
    if isinstance(value, Tensor):
        value = value.item() if _is_plain(value) and value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 100 else None


def _known(name: str, saying: str) -> str:
    try:
        return check_name(name)
    except ModelError as error:
        raise CheckpointError(f"{saying}{_shown(name)}; {error}") from None


@lru_cache(maxsize=64)
def _expected(name: str, num_classes: int) -> dict[str, tuple[torch.Size, bool]]:
    """Of each weight of a network its shape, and whether it is of floating point."""
    # Built for real: the meta device would import half of PyTorch's compiler first, over a second.
    network = _built(name, num_classes)
    return {key: (value.shape, value.is_floating_point()) for key, value in network.state_dict().items()}


def _differences(checkpoint: Checkpoint, name: str) -> str:
    """What does not fit the network `name` of the checkpoint's own number of classes; '' if all does."""
    state, expected = checkpoint.state_dict, _expected(name, checkpoint.num_classes or 100)
    missing = [key for key in expected if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in expected]
    shared = [key for key in expected if key in state]
    wrong = [f"{key} is {tuple(state[key].shape)} instead of {tuple(expected[key][0])}" for key in shared
             if state[key].shape != expected[key][0]]
    wrong += [f"{key} is {state[key].dtype}" for key in shared
              if state[key].is_floating_point() != expected[key][1] and not key.endswith(COUNTER)]
    parts = [f"{what} {_listed(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    if wrong:
        parts.append(wrong[0] + (f" (one of {len(wrong)} such)" if len(wrong) > 1 else ""))
    return ", ".join(parts)


def _fitting(checkpoint: Checkpoint) -> list[str]:
    """The networks of this repository that the checkpoint's weights fit, whatever their number of classes."""
    return [name for name in model_dict if not _differences(checkpoint, name)]


def _listed(keys) -> str:
    """The first few of `keys`, and how many there are."""
    keys = list(keys)
    more = f", ... ({len(keys)} in all)" if len(keys) > 3 else ""
    return ", ".join(map(_shown, keys[:3])) + more


def _shown(key) -> str:
    """A key of unknown origin, fit for one line."""
    text = key if isinstance(key, str) and key.isprintable() else repr(key)
    return text if len(text) <= 80 else f"{text[:77]}..."
