"""A run's record: its folder of arguments, log, checkpoints and result, and its scalars."""
import glob
import json
import os
import pickle
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace

import torch

from dataset import Data
from helper.util import distributed
from helper.util.errors import Interrupted, UsageError
from helper.util.files import PARTIAL, lock_folder, write_bytes, write_json, write_torch
from helper.util.progress import clock
from models import Classifier
from models.precision import Precision

# A restart may change these: they do not touch the result.
RESUME_IGNORED_OPTIONS = {"print_freq", "tb_freq", "save_freq", "num_workers", "data_dir", "save_dir", "cache_dir",
                          "overwrite", "resume"}
STATE = "resume.pth"


class Run:
    """A run's folder, held by this process alone.

    args.json: everything resolved; log.jsonl: a line an epoch; {model}_best.pth, ckpt_epoch_{e}.pth,
    {model}_last.pth: checkpoints of the network alone; resume.pth: what going on needs; result.json: the end.
    Scalars go to a folder of the same name under `scalars`.

    earlier: the settings of the run that is gone on with; empty for a new one
    options: every resolved option; folders: where runs and their scalars go under --save_dir
    Raises UsageError where the folder is another process's, or holds a run with other settings.
    """

    # Writing the state may take this part of a run's time; where epochs are too short for it, a state stays
    # in memory until a later epoch, or a signal, has it written.
    SAVE_SHARE = 0.05

    def __init__(self, options: Namespace, folders: tuple[str, str], name: str, network: Classifier, data: Data):
        self.options, self.settings, self.data = options, vars(options), data
        self.folder, self.scalar_folder = (os.path.join(options.save_dir, folder, name) for folder in folders)
        self.model_name, self.num_classes = network.name, len(data.classes)
        self.best = {"top1": -1.0}
        self.lines, self.state, self.stop_signal = [], None, None
        self.saved_at = self.save_seconds = 0.0
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {self.folder} ({error.strerror}): give another --save_dir") from None
        self.lock = lock_folder(self.folder)
        if options.overwrite:
            self._clear()
        for left_over in glob.glob(glob.escape(self.folder) + "/*" + PARTIAL):
            os.remove(left_over)
        self.result = self._read("result.json", json.load)
        self.held, self.earlier = None, {}
        if self._exists(STATE) or self.result is not None:
            self._compare()
        if self.result is None and self._exists(STATE):
            if options.resume == "never":
                raise UsageError(f"{self.folder} holds an unfinished run: leave out --resume never to go on, "
                                 "or give --overwrite to start afresh")
            self.held = self._read(STATE, lambda file: torch.load(file, map_location="cpu", weights_only=True))
        if self.result is not None and self._exists(STATE):  # stopped between its last two acts
            os.remove(self._path(STATE))
        self.logger = None

    def start(self, device: torch.device, precision: Precision, facts: dict[str, str]) -> None:
        """Say what will be done, write it to args.json, and begin to listen for signals."""
        o, data = self.options, self.data
        warmup = f", warm-up {o.warm_up} epochs" if o.warm_up > 1 else ""
        decay = f", ×{o.lr_decay_rate:g} after {', '.join(map(str, o.lr_decay_epochs))}" if o.lr_decay_epochs else ""
        facts = facts | {
            "data": f"{data.name}, {len(data.train):,} training and {len(data.test):,} test images, "
                    f"{len(data.classes)} classes{data.note}",
            "schedule": f"{o.epochs} epochs of batches of {o.batch_size}, rate {o.learning_rate:g}{warmup}{decay}",
            "device": _describe(device) + _others(o),
            "precision": precision.in_words(device) + (" (--fast)" if o.fast else ""),
            "folder": self.folder,
        }
        for name, fact in facts.items():
            print(f"{name:<10}{fact}", flush=True)
        write_json(self._path("args.json"), {
            "settings": self.settings, "facts": facts, "command": shlex.join(["python", *sys.argv]),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "commit": _commit(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        })
        self.logger = _tensorboard_logger(self.scalar_folder)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def epochs_left(self, phase: str, epochs: int) -> int:
        """How many of a phase's epochs are still to train."""
        return epochs - (self.held["epoch"] if self.held and self.held["phase"] == phase else 0)

    def resume(self, phase) -> int:
        """Bring `phase` to the last finished epoch that was saved; returns that epoch, 0 for none."""
        if self.held is None:
            return 0
        if self.held["phase"] != phase.name:
            # The state of a later phase means that this one is done; its results are in that state.
            return phase.epochs if phase.name in self.held["done"] else 0
        held, self.held = self.held, None
        for name, module in phase.modules.items():
            module.load_state_dict(held["modules"][name])
        phase.optimizer.load_state_dict(held["optimizer"])
        self.best, self.lines = held["best"], held["lines"]
        self._write_log()
        print(f"going on after epoch {held['epoch']} of {phase.epochs} ({phase.name})", flush=True)
        return held["epoch"]

    def end_epoch(self, phase, epoch, averages, tested, seconds, speed) -> None:
        """Record a finished epoch: its line, its scalars, its checkpoints, and the state to go on from."""
        rate = phase.rate(epoch)
        line = {"phase": phase.name, "epoch": epoch, "rate": rate, "loss": averages.loss, "losses": averages.losses}
        scalars = {"train_loss": averages.loss}
        if tested:
            line |= {"train_top1": averages.top1, "train_top5": averages.top5, "test_loss": tested.loss,
                     "test_top1": tested.top1, "test_top5": tested.top5}
            scalars |= {"train_acc": averages.top1, "test_acc": tested.top1, "test_acc_top5": tested.top5,
                        "test_loss": tested.loss}
        line |= {"seconds": round(seconds, 3), "images_per_second": round(speed, 1)}
        self.lines.append(line)
        self._write_log()
        prefix = "" if tested else f"{phase.name}/"
        for name, value in scalars.items():
            self.logger.log_value(prefix + name, value, epoch)
        if tested and tested.top1 > self.best["top1"]:
            self.best = {"epoch": epoch, "top1": tested.top1, "top5": tested.top5}
            self.checkpoint(f"{self.model_name}_best.pth", phase, epoch, tested.top1)
        if tested and epoch % self.options.save_freq == 0:
            self.checkpoint(f"ckpt_epoch_{epoch}.pth", phase, epoch, tested.top1)
        self._keep(phase, epoch)
        self.stop_if_asked()

    def step_scalars(self, phase, step, averages) -> None:
        """The epoch's average losses so far, by the terms' names, at a global step (`--tb_freq`)."""
        for name, value in averages.losses.items():
            self.logger.log_value(f"{phase.name}_steps/{name}", value, step)

    def checkpoint(self, name, phase, epoch, accuracy) -> None:
        """A checkpoint of the network alone: plain data, read by load_model."""
        write_torch(self._path(name), {
            "model": phase.student.state_dict(), "epoch": epoch, "accuracy": accuracy,
            "optimizer": phase.optimizer.state_dict(), "model_name": self.model_name, "num_classes": self.num_classes,
        })

    def finish(self, phase, facts: dict) -> None:
        """Write {model}_last.pth and result.json, which also holds `facts`."""
        last = self.lines[-1]
        self.checkpoint(f"{self.model_name}_last.pth", phase, last["epoch"], last["test_top1"])
        self.result = {
            "last": {"epoch": last["epoch"], "top1": last["test_top1"], "top5": last["test_top5"]}, "best": self.best,
            "seconds": round(sum(line["seconds"] for line in self.lines), 1), **facts,
        }
        write_json(self._path("result.json"), self.result)
        os.remove(self._path(STATE))

    def report(self) -> None:
        """Print the result."""
        last, best = self.result["last"], self.result["best"]
        print(f"test accuracy: last {last['top1']:.2f} (epoch {last['epoch']}), "
              f"best {best['top1']:.2f} (epoch {best['epoch']}); {clock(self.result['seconds'])} of training; "
              f"in {self.folder}", flush=True)
        for shots, group in self.result.get("shots", {}).items():
            print(f"{shots}-shot test accuracy: {group['top1']:.2f} ({group['classes']} classes)", flush=True)

    def stop_if_asked(self, together: bool = True) -> None:
        """Raise Interrupted if a signal has come, once the last finished epoch's state is on the disk.

        together: all processes ask at once, and stop at once, whichever of them the signal has reached
        """
        signum = distributed.all_reduce_max(self.stop_signal or 0) if together else self.stop_signal
        if signum:
            self._write_state()
            raise Interrupted(signum)

    def _keep(self, phase, epoch):
        self.state = {
            "phase": phase.name, "done": sorted({line["phase"] for line in self.lines} - {phase.name}), "epoch": epoch,
            "modules": {name: module.state_dict() for name, module in phase.modules.items()},
            "optimizer": phase.optimizer.state_dict(), "best": self.best, "lines": self.lines,
        }
        if epoch == phase.epochs or (time.monotonic() - self.saved_at) * self.SAVE_SHARE >= self.save_seconds:
            self._write_state()
        else:
            self.state = _copied(self.state)

    def _write_state(self):
        if self.state is not None:
            started = time.monotonic()
            write_torch(self._path(STATE), self.state)
            self.state, self.saved_at = None, time.monotonic()
            self.save_seconds = self.saved_at - started

    def _on_signal(self, signum, frame):
        if self.stop_signal is not None:  # asked twice: at once
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.stop_signal = signum

    def _write_log(self):
        write_bytes(self._path("log.jsonl"), "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def _compare(self):
        self.earlier = held = (self._read("args.json", json.load) or {}).get("settings", {})
        there, now = (settings.get("processes", 1) for settings in (held, self.settings))
        if there != now:
            raise UsageError(f"{self.folder} holds a run of {there} process{'es' * (there > 1)}, and there "
                             f"{'are' if now > 1 else 'is'} {now} now: start as many, or give another --trial, or "
                             "--overwrite to start afresh")
        differ = [f"--{key} {held.get(key)} there, {value} now" for key, value in self.settings.items()
                  if key not in RESUME_IGNORED_OPTIONS and key in held and held[key] != value]
        if differ:
            raise UsageError(f"{self.folder} holds a run with other settings ({'; '.join(differ)}): "
                             "give another --trial, or --overwrite to start afresh")

    def _clear(self):
        shutil.rmtree(self.scalar_folder, ignore_errors=True)
        for entry in list(os.scandir(self.folder)):
            if entry.name != ".lock":
                (shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.remove)(entry.path)

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _exists(self, name):
        return os.path.exists(self._path(name))

    def _read(self, name, load):
        """The content of a file of this run, None where there is none; UsageError where it is damaged."""
        if not self._exists(name):
            return None
        try:
            with open(self._path(name), "rb") as file:
                return load(file)
        except (ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError):
            raise UsageError(f"{self._path(name)} is damaged: bring it back from a copy, "
                             "or give --overwrite to start afresh") from None


class NullRecord(Run):
    """The run of a process that is not the first: it holds what the first one has read, and writes nothing."""

    def __init__(self, options: Namespace, held: tuple):
        self.options = options
        self.result, self.held, self.earlier = held
        self.best, self.lines, self.stop_signal = {"top1": -1.0}, [], None

    def start(self, device, precision, facts):
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def end_epoch(self, phase, epoch, averages, tested, seconds, speed):
        self.stop_if_asked()

    def step_scalars(self, phase, step, averages):
        pass

    def finish(self, phase, facts):
        pass

    def report(self):
        pass

    def _write_state(self):
        pass

    def _write_log(self):
        pass


def open_run(options: Namespace, folders: tuple[str, str], name: str, network: Classifier, data: Data) -> Run:
    """The Run of these arguments; of several processes the first has it, and the others follow. Raises as Run."""
    own = []

    def held():
        own.append(Run(options, folders, name, network, data))
        return own[0].result, own[0].held, own[0].earlier

    told = distributed.broadcast_from_rank0(held)
    return own[0] if own else NullRecord(options, told)


def _copied(state):
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return state


def _describe(device):
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    return f"cpu, {torch.get_num_threads()} threads"


def _others(o):
    if distributed.world_size() == 1:
        return ""
    norm = "over all of it" if o.sync_bn else "by process"
    return (f", in each of {distributed.world_size()} processes, which share a batch: "
            f"{o.batch_size // distributed.world_size()} images each, batch norm {norm}")


def _commit():
    """The repository's commit, with '+' if files differ from it; None outside git."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        run = subprocess.run(["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty=+"],
                             capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None


def _tensorboard_logger(folder):
    # tensorboard-logger's generated code is older than protobuf 4, whose own Python implementation still reads it.
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard_logger import Logger
    return Logger(folder)
