"""What scripts/evaluate.py, export.py and analyze.py look at: a checkpoint, its run's record, a test set."""
import importlib.util
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from typing import NamedTuple

import torch

import dataset
from dataset import Data
from helper.cli import device_of
from helper.util.arguments import positive_int
from helper.util.errors import UsageError
from models import Checkpoint, Classifier, load_model


class Record(NamedTuple):
    """A run's folder and the content of args.json, result.json and log.jsonl; empty where there is no such file."""

    folder: str
    args: dict
    result: dict
    log: list

    @property
    def settings(self) -> dict:
        return self.args.get("settings", {})


class LoadedCheckpoint(NamedTuple):
    """A checkpoint: its network, on a device and in evaluation mode, and the record of the run it lies in."""

    path: str
    network: Classifier
    checkpoint: Checkpoint
    record: Record


def add_flags(parser: ArgumentParser) -> None:
    """The flags that the three scripts share."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="one of a run here, a published one, or a state dict")
    parser.add_argument("--dataset", choices=dataset.LOADERS, metavar="NAME",
                        help="one of " + ", ".join(dataset.LOADERS) + " (default: the run's, else cifar100)")
    parser.add_argument("--data_dir", default="./data", metavar="DIR", help="where data is, or is fetched to")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    parser.add_argument("--batch_size", type=positive_int, default=256, metavar="N", help="images at a time")
    # What is measured is measured in full float32.
    parser.set_defaults(deterministic=False, tf32="off")


def need(script: str, *packages: str) -> None:
    """Raises UsageError where one of the `packages` of requirements-extras.txt is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"{script} needs {', '.join(missing)}: pip install -r requirements-extras.txt")


def open_subject(options: Namespace) -> tuple[LoadedCheckpoint, Data, torch.device]:
    """The checkpoint that the command line names, the data set to look at it with, and the device.

    Raises UsageError, DataError, CheckpointError.
    """
    device = device_of(options)
    network, checkpoint = load_model(options.checkpoint)
    record = read_record(os.path.dirname(options.checkpoint))
    name = options.dataset or record.settings.get("dataset", "cifar100")
    if name not in dataset.LOADERS:
        raise UsageError(f"{record.folder}/args.json names the data set {name}, which is not here: give --dataset")
    data = dataset.load(name, options.data_dir)
    _check_classes(options.checkpoint, checkpoint, data)
    return LoadedCheckpoint(options.checkpoint, network.to(device), checkpoint, record), data, device


def open_another(path: str, data: Data, device: torch.device) -> LoadedCheckpoint:
    """A second checkpoint, to be held against the first. Raises UsageError, CheckpointError."""
    network, checkpoint = load_model(path)
    _check_classes(path, checkpoint, data)
    return LoadedCheckpoint(path, network.to(device), checkpoint, read_record(os.path.dirname(path)))


def _check_classes(path, checkpoint, data):
    if checkpoint.num_classes != len(data.classes):
        raise UsageError(f"{path} has {checkpoint.num_classes} classes, {data.name} has {len(data.classes)}: "
                         "give the --dataset that it was trained on")


def read_record(folder: str) -> Record:
    """The record of the run in `folder`, as far as there is one. Raises UsageError for a damaged file."""
    args, result = (_read(folder, name, json.loads, dict) or {} for name in ("args.json", "result.json"))
    if not isinstance(args.get("settings", {}), dict):
        raise UsageError(f"{os.path.join(folder, 'args.json')} is damaged: bring it back from a copy, or move it away")
    lines = _read(folder, "log.jsonl", lambda text: [json.loads(line) for line in text.splitlines()], list) or []
    return Record(folder or ".", args, result, lines)


def _read(folder, name, parse, kind):
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8") as file:
            content = parse(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = None
    if not isinstance(content, kind):
        raise UsageError(f"{path} is damaged: bring it back from a copy, or move it away")
    return content


def say(line: str) -> None:
    """A line on standard error, where progress is shown: standard output is for what is measured."""
    print(line, file=sys.stderr, flush=True)
