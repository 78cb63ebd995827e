"""Reading checkpoints: the files written here, the published ones, and plain state dicts.

A checkpoint is a dict with the state dict under `model` and, where known, `epoch`, `accuracy` and
`model_name`; published files lack the last, and their network is found by the names of the folder and the
file, or by the shapes of the weights. Files come from anywhere: nothing in them is ever executed
(`weights_only=True`), and whatever is wrong with one is a CheckpointError of one line.
"""
import pickle
import pickletools
import re
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from helper.util.errors import UserError
from models._base import Classifier, ModelError
from models._registry import ZOOS, build, check_name, has_prefix, own_models, pretrained

# What the wrappers of data parallelism and of compilation put before every key.
WRAPPERS = ("module.", "_orig_mod.")
# How the two formats of torch.save begin: a zip archive, and formerly a pickled magic number.
ZIP = b"PK\x03\x04"
LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
# A counter of batch norm, which files of old PyTorch versions lack and nothing here reads.
COUNTER = "num_batches_tracked"


class CheckpointError(UserError):
    """What is wrong with a checkpoint and how to mend it, in one line."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    state_dict: the weights on the CPU, without the prefixes of wrappers; all of them finite
    epoch: the number of epochs trained, if the file says so
    accuracy: the test accuracy in percent, if the file says so
    model_name: the network's name, if the file says so; not yet held against the known ones
    num_classes: the rows of the last layer, the only matrix among the weights of every network here; where there
        is no such matrix or there are several, what the file says, or the rows of the last one
    """

    state_dict: dict[str, Tensor]
    epoch: int | None = None
    accuracy: float | None = None
    model_name: str | None = None
    num_classes: int | None = None


def read_checkpoint(path) -> Checkpoint:
    """The checkpoint in the file `path`: {'model': ...}, {'state_dict': ...} or a state dict itself.

    Raises CheckpointError, and nothing else, for any file that is none of these.
    """
    content = _load(path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path} has no state dict inside but a {kind}: save network.state_dict()")
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            state_dict, record = content[key], content
            break
    else:
        state_dict, record = content, {}
        if not any(isinstance(value, Tensor) and value.ndim for value in content.values()):
            found = _listed(content) or "nothing"
            raise CheckpointError(
                f"{path} has no state dict inside: it needs one under 'model' or 'state_dict', but holds "
                f"{found}"
            )
    if not state_dict:
        raise CheckpointError(f"{path} has an empty state dict: save the network's again")
    state_dict = _unwrapped(_checked(path, state_dict))
    epoch, name = record.get("epoch"), record.get("model_name")
    return Checkpoint(
        state_dict=state_dict,
        epoch=epoch if _is_count(epoch) else None,
        accuracy=_percent(record.get("accuracy")),
        model_name=name if isinstance(name, str) else None,
        num_classes=_num_classes(state_dict, record.get("num_classes")),
    )


def model_name_from(path, checkpoint: Checkpoint) -> str:
    """The name of the network whose weights `checkpoint`, read from `path`, holds.

    In this order: the name in the checkpoint; the longest name that the folder's begins with, followed
    by '_' or its end (wrn_40_2_vanilla, torchvision:resnet18_mine); the one name that stands in the file's own as
    a word (cifar100_resnet56-f2eff4c8.pt); the one network of this repository with weights of these shapes.

    Raises CheckpointError where none of these decides.
    """
    if checkpoint.model_name is not None:
        return _known(checkpoint.model_name, f"{path} says that it holds a ")
    path_absolute = Path(path).absolute()
    folder = path_absolute.parent.name
    starts = [name for name in _names_for(folder) if f"{folder}_".startswith(f"{name}_")]
    if starts:
        return max(starts, key=len)
    words = [n for n in own_models() if re.search(rf"(?<![A-Za-z0-9]){n}(?![A-Za-z0-9])", path_absolute.name)]
    if len(words) == 1:
        return words[0]
    fitting = _fitting(checkpoint)
    if len(fitting) == 1:
        return fitting[0]
    raise CheckpointError(
        f"{path}: neither the folder, the file's name nor the weights tell the network; "
        f"name the folder after one of {', '.join(own_models())}"
    )


def load_model(path, model_name: str | None = None, num_classes: int | None = None):
    """The network in the file `path`, in evaluation mode on the CPU, and its Checkpoint.

    path: or a name such as torchvision:resnet34, for the network with the weights that its library publishes
    model_name: its name; found by `model_name_from` if not given
    num_classes: the number of classes that the caller needs; any if not given

    The global random state is left as it was, so that a run's stream does not depend on its teacher.
    Raises CheckpointError for a bad file, an unknown name, weights that do not fit the network
    exactly, or another number of classes; ModelError where a library's weights cannot be had.
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
        hint = "its weights fit no network here"
        if fitting:
            hint = f"its weights fit {fitting[0]}: name that, as by a folder {fitting[0]}_vanilla"
        raise CheckpointError(f"{path} does not fit {name}: {differences}; {hint}")
    _check_classes(path, checkpoint, num_classes)
    network = _built(name, checkpoint.num_classes)
    network.load_state_dict(checkpoint.state_dict, strict=True)
    return network.eval(), checkpoint


def names_weights(path) -> bool:
    """Whether `path` is not a file but a library's network, as torchvision:resnet34."""
    return has_prefix(str(path)) and "/" not in str(path) and not Path(path).exists()


def _published(name, num_classes):
    with torch.random.fork_rng(devices=[]):
        network = pretrained(name).eval()
    with torch.no_grad():
        state = network.state_dict()
    checkpoint = Checkpoint(state, model_name=name, num_classes=_num_classes(state, network.num_classes))
    _check_classes(name, checkpoint, num_classes)
    return network, checkpoint


def _check_classes(path, checkpoint, num_classes):
    if num_classes is not None and checkpoint.num_classes != num_classes:
        raise CheckpointError(
            f"{path} has {checkpoint.num_classes} classes, {num_classes} are expected: "
            "take a checkpoint trained on this data set"
        )


def _num_classes(state_dict, said) -> int | None:
    """See Checkpoint; `said`: what the file says, of any type."""
    matrices = [value for value in state_dict.values() if value.ndim == 2 and len(value) > 0]
    if len(matrices) != 1 and _is_count(said) and said > 0:
        return said
    return len(matrices[-1]) if matrices else None


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _names_for(folder: str) -> list[str]:
    """The names that a folder may begin with; another library is asked for its own only where its prefix is there."""
    zoo = folder.partition(":")[0]
    if not has_prefix(folder):
        return list(own_models())
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
        with open(path, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist: check the path, or fetch the published teachers with "
            "scripts/fetch_pretrained_teachers.sh"
        ) from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a directory: name a checkpoint in it") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path!r} cannot be read: {reason}") from None
    if empty:
        raise CheckpointError(f"{path} is empty: fetch or write it again")
    with warnings.catch_warnings():
        # Remarks of the readers on the bytes would only stand before our own line.
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        # Broad on purpose: the readers behind torch.load raise what the bytes happen to provoke (KeyError,
        # UnicodeDecodeError, struct.error, MemoryError, ...), and every one of these means a bad file.
        except Exception:
            raise CheckpointError(f"{path} {_diagnosis(path)}") from None


def _diagnosis(path) -> str:
    """Why torch.load refused the file, told from its bytes; they are parsed, never unpickled."""
    data = Path(path).read_bytes()
    try:
        pickled, is_archive = _pickle_in(data)
        foreign = _foreign_globals(pickled)
    # Broad for the reason of _load: these are the bytes that it could not make sense of.
    except Exception:
        is_archive, foreign = data.startswith(ZIP), []
    if foreign:
        return (
            f"pickles more than tensors and plain data ({', '.join(foreign[:3])}), which could run any code, "
            "and is not opened: take a file with the state dict alone, such as a ckpt_epoch_*.pth"
        )
    if is_archive or data.startswith(LEGACY):
        return "is truncated or corrupt: fetch or write it again"
    return "is not a PyTorch checkpoint: it may be a failed download; fetch or write it again"


def _pickle_in(data: bytes) -> tuple[bytes, bool]:
    """The pickled part of a file, and whether the file is an archive of torch.save."""
    if not data.startswith(ZIP):
        return data, False
    with zipfile.ZipFile(BytesIO(data)) as archive:
        members = [name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
        return (archive.read(members[0]), True) if members else (b"", False)


def _foreign_globals(pickled: bytes) -> list[str]:
    """The functions and classes outside PyTorch's own data that complete pickles in `pickled` call for."""
    stream, foreign = BytesIO(pickled), []
    # The former format is five pickles in a row (magic number, version, system, content, keys).
    for _ in range(5):
        found = []
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    module, name = argument.split(" ", 1)
                    if not _is_data(module, name):
                        found.append(_shown(f"{module}.{name}"))
                elif opcode.name == "STACK_GLOBAL":
                    # Its name lies on the stack, which is not built here; torch.save writes no such code.
                    found.append("other objects")
        except Exception:  # the end of the pickles, as arbitrary as the bytes
            break
        foreign += found
    return list(dict.fromkeys(foreign))


def _is_data(module: str, name: str) -> bool:
    """Whether a pickle needs this name for tensors and containers alone."""
    if module == "torch":
        is_dtype = isinstance(vars(torch).get(name), torch.dtype)
        return is_dtype or name.endswith("Storage") or name in ("Size", "device")
    if module in ("torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter"):
        return True
    return (module, name) in (("collections", "OrderedDict"), ("_codecs", "encode"))


def _checked(path, state_dict: dict) -> dict[str, Tensor]:
    """The state dict, if it is one: names, and dense real tensors without NaN and infinities."""
    for key, value in state_dict.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path}: the key {_shown(key)} of its state dict is no name: save it anew")
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {_shown(key)} in its state dict is no tensor but of type {type(value).__name__}; "
                "save network.state_dict() alone"
            )
        if not _is_plain(value):
            raise CheckpointError(
                f"{path}: {_shown(key)} is not a dense tensor of real numbers; save the network before "
                "it is quantised or pruned to sparse tensors"
            )
        if value.is_floating_point() and not value.detach().float().isfinite().all():
            raise CheckpointError(
                f"{path}: {_shown(key)} holds NaN or infinite values, so the training diverged; "
                "take a checkpoint from before"
            )
    return state_dict


def _is_plain(value: Tensor) -> bool:
    """Whether every element is a real number that lies in memory on its own."""
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
def _shapes(name: str, num_classes: int) -> dict[str, torch.Size]:
    # Built for real: the meta device would import half of PyTorch's compiler first, over a second.
    network = _built(name, num_classes)
    return {key: value.shape for key, value in network.state_dict().items()}


def _differences(checkpoint: Checkpoint, name: str) -> str:
    """What does not fit the network `name` of the checkpoint's own number of classes; '' if all does."""
    state, shapes = checkpoint.state_dict, _shapes(name, checkpoint.num_classes or 100)
    missing = [key for key in shapes if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in shapes]
    wrong = [key for key in shapes if key in state and state[key].shape != shapes[key]]
    parts = []
    if missing:
        parts.append(f"it lacks {_listed(missing)}")
    if unexpected:
        parts.append(f"it has {_listed(unexpected)} besides")
    if wrong:
        key = wrong[0]
        more = f" (one of {len(wrong)} such)" if len(wrong) > 1 else ""
        parts.append(f"{key} is {tuple(state[key].shape)} instead of {tuple(shapes[key])}{more}")
    return ", ".join(parts)


def _fitting(checkpoint: Checkpoint) -> list[str]:
    """The networks of this repository that the checkpoint's weights fit, whatever their number of classes."""
    return [name for name in own_models() if not _differences(checkpoint, name)]


def _listed(keys) -> str:
    """The first few of `keys`, and how many there are."""
    keys = list(keys)
    more = f", ... ({len(keys)} in all)" if len(keys) > 3 else ""
    return ", ".join(map(_shown, keys[:3])) + more


def _shown(key) -> str:
    """A key of unknown origin, fit for one line."""
    text = key if isinstance(key, str) and key.isprintable() else repr(key)
    return text if len(text) <= 80 else f"{text[:77]}..."
