"""What scripts/evaluate.py, export.py, analyze.py and transfer.py read: a checkpoint, its run's record, a data set."""
import contextlib
import importlib.util
import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import NamedTuple

import torch

import dataset
from dataset import Data
from helper.device import open_device
from helper.flags import add_data_flags
from helper.record.records import Record, read_run
from helper.util.arguments import positive_int
from helper.util.errors import UsageError, printable
from helper.util.files import write_bytes
from models import Checkpoint, Classifier, load_model


class LoadedCheckpoint(NamedTuple):
    """A checkpoint: its network, on a device and in evaluation mode, and the record of the run that it lies in."""

    path: str
    network: Classifier
    checkpoint: Checkpoint
    record: Record | None

    @property
    def settings(self) -> dict:
        """The options of the run; empty where the file lies in no run's folder."""
        return self.record.settings if self.record else {}


def add_flags(parser: ArgumentParser, data: str = "(default: the run's, else cifar100)", size: str = "224") -> None:
    """The flags that the scripts share.

    data: what the help says of --dataset; size: what --image_size is where neither it nor the run names one
    """
    parser.add_argument("checkpoint", metavar="CHECKPOINT",
                        help="of a run here, a published one, a state dict; or torchvision:NAME, timm:NAME")
    add_data_flags(parser, None, data, f"default: the run's, else {size}")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    parser.add_argument("--batch_size", type=positive_int, default=256, metavar="N", help="images at a time")
    # Measurements are in full float32.
    parser.set_defaults(deterministic=False, tf32="off")


def add_json_flag(parser: ArgumentParser) -> None:
    parser.add_argument("--json", type=_new_file, nargs="?", const="-", metavar="FILE",
                        help="write JSON to FILE, or without a FILE to standard output, instead of the text")


def _new_file(path):
    if not os.access(os.path.dirname(path) or ".", os.W_OK | os.X_OK) or os.path.isdir(path):
        raise ArgumentTypeError(f"{path} cannot be written there; name a file in a folder that exists")
    return path


def give(path: str | None, found: dict, text: str) -> None:
    """What was found, as --json says: the text if `path` is None, JSON on standard output if it is "-", else in it."""
    if path is not None:
        text = json.dumps(found, indent=2)  # ASCII, so that it is JSON in every encoding
    if path in (None, "-"):
        print(text)
    else:
        write_bytes(path, f"{text}\n".encode())


def need(script: str, *packages: str) -> None:
    """Raises UsageError where one of the `packages` of requirements-extras.txt is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"{script} needs {', '.join(missing)}: pip install -r requirements-extras.txt")


def open_checkpoint(options: Namespace) -> tuple[LoadedCheckpoint, Data, torch.device]:
    """The checkpoint that the command line names, the data set to measure it on, and the device.

    Raises UsageError, DataError, CheckpointError, ModelError.
    """
    device = open_device(options)
    loaded = load(options.checkpoint, device)
    name = options.dataset or loaded.settings.get("dataset", "cifar100")
    if name not in dataset.LOADERS:
        raise UsageError(f"the run of {loaded.path} names the data set {name}, which is not here: give --dataset")
    if options.image_size and "image_size" not in dataset.SETTINGS.get(name, ()):
        raise UsageError(f"--image_size {options.image_size}: the images of {name} have one size; leave it out")
    data = load_data(name, options, loaded)
    check_classes(loaded, data)
    return loaded, data, device


def load(path: str, device: torch.device) -> LoadedCheckpoint:
    """The checkpoint in the file `path`, or of a library's name. Raises UsageError, CheckpointError, ModelError."""
    with contextlib.redirect_stdout(sys.stderr):  # what a library fetches is progress: see `say`
        network, checkpoint = load_model(path)
    record = read_run(os.path.dirname(path)) if os.path.exists(path) else None
    return LoadedCheckpoint(path, network.to(device), checkpoint, record)


def load_data(name: str, options: Namespace, loaded: LoadedCheckpoint) -> Data:
    """The data set `name`, with the settings of the command line, else of the checkpoint's run. Raises DataError."""
    settings = {"image_size": options.image_size or loaded.settings.get("image_size"),
                "skip_unreadable": options.skip_unreadable or loaded.settings.get("skip_unreadable", False),
                "num_workers": options.num_workers}
    with contextlib.redirect_stdout(sys.stderr):  # what is fetched is progress: see `say`
        return dataset.load(name, options.data_dir, **{key: settings[key] for key in dataset.SETTINGS.get(name, ())})


def check_classes(loaded: LoadedCheckpoint, data: Data) -> None:
    """Raises UsageError where the network has another number of classes than the data set."""
    if loaded.checkpoint.num_classes != len(data.classes):
        raise UsageError(f"{loaded.path} has {loaded.checkpoint.num_classes} classes, {data.name} has "
                         f"{len(data.classes)}: give the --dataset that it was trained on")


def say(line: str) -> None:
    """A line on standard error, where progress is shown: standard output is for what is measured."""
    print(printable(line), file=sys.stderr, flush=True)
