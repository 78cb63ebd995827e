"""A run's record: what it writes while it trains, and where it continues from."""
import copy
import json
import math
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

import torch

from helper.record.display import Display
from helper.record.folder import RunFolder
from helper.record.naming import scalars_folder
from helper.util import distributed
from helper.util.errors import Interrupted, RunError, UsageError
from helper.util.progress import clock
from helper.util.stop import StopRequest, end_at_once
from models import Classifier

# A restart may change these: they do not touch the result, or what they decide is compared instead (see Decisions).
RESUME_IGNORED_OPTIONS = {"print_freq", "tb_freq", "save_freq", "num_workers", "data_dir", "save_dir", "cache_dir",
                          "overwrite", "resume", "path_t", "device", "amp", "fast", "channels_last"}
STATE = "resume.pth"


@dataclass(frozen=True)
class Earlier:
    """What the run's folder holds of it: its result once it is finished, else the state to continue from.

    decisions: what the run decided when it began, beside its options; empty for a new one
    """

    result: dict | None = None
    state: dict | None = None
    decisions: dict[str, Any] = field(default_factory=dict)


class Record:
    """The record of a process that writes nothing: each method does its part in what all processes do together.

    RunRecord, rank 0's, adds the files.
    """

    def __init__(self, options: Namespace, earlier: Earlier):
        self.options, self.earlier = options, earlier
        self.result, self.state = earlier.result, earlier.state
        self.stop: StopRequest | None = None

    def listen(self) -> None:
        """From here on SIGTERM and SIGINT save the last finished epoch and end the run; a second one just ends it."""
        self.stop = StopRequest(again=end_at_once)

    def start(self, facts: dict[str, str], decisions: dict[str, Any], notes: list[str]) -> None:
        """Say what will be done, and write it down.

        facts: in words; decisions: what the run has decided beside its options; notes: lines worth a look
        """

    def epochs_left(self, phase: str, epochs: int) -> int:
        """How many of a phase's epochs are still to train."""
        return epochs - (self.state["epoch"] if self.state and self.state["phase"] == phase else 0)

    def resume(self, phase) -> int:
        """Bring `phase` to the last finished epoch that was saved; returns that epoch, 0 for none."""
        if self.state is None:
            return 0
        if self.state["phase"] != phase.name:
            # The state of a later phase means that this one is done; its results are in that state.
            return phase.epochs if phase.name in self.state["done"] else 0
        state, self.state = self.state, None
        for name, module in phase.modules.items():
            module.load_state_dict(state["modules"][name])
        phase.optimizer.load_state_dict(state["optimizer"])
        self._continue(phase, state)
        return state["epoch"]

    def end_step(self, phase, epoch: int, number: int, meters) -> None:
        """After each step: stop if a signal has asked for it, and now and then keep the losses so far."""
        if distributed.world_size() == 1 or number % distributed.ASK_EVERY == 0:
            self.stop_if_asked()
        if number % self.options.tb_freq == 0:
            averages = meters.read()
            self._step_scalars(phase, (epoch - 1) * len(phase.loader) + number, averages)

    def end_epoch(self, phase, epoch: int, averages, tested, seconds: float) -> None:
        """Record a finished epoch. Raises RunError where the test loss is not finite."""
        if tested and not math.isfinite(tested.loss):
            raise RunError(f"the test loss is not finite after epoch {epoch}: lower the learning rate; "
                           "the last good checkpoint is kept")
        self._keep_epoch(phase, epoch, averages, tested, seconds)
        self.stop_if_asked()

    def finish(self, phase, facts: dict) -> None:
        """Write the last checkpoint and result.json, which also holds `facts`."""

    def report(self) -> None:
        """Print the result."""

    def stop_if_asked(self, together: bool = True) -> None:
        """Raise Interrupted if a signal has come, once the last finished epoch's state is on the disk.

        together: all processes ask at once, and stop at once, whichever of them the signal has reached
        """
        own = self.stop.signum if self.stop else None
        signum = distributed.all_reduce_max(own or 0) if together else own
        if signum:
            self._write_state()
            raise Interrupted(signum)

    def _continue(self, phase, state):
        """The phase continues from `state`."""

    def _step_scalars(self, phase, step, averages):
        """The epoch's average losses so far, at a global step."""

    def _keep_epoch(self, phase, epoch, averages, tested, seconds):
        """Write an epoch's line, scalars, checkpoints and state."""

    def _write_state(self):
        """Write the state of the last finished epoch, where that was put off."""


class RunRecord(Record):
    """The record in a run's folder.

    args.json: options, decisions and facts; log.jsonl: a line an epoch; {model}_best.pth, ckpt_epoch_{e}.pth,
    {model}_last.pth: checkpoints of the network alone; resume.pth: what continuing needs; result.json: the end.
    Scalars are in a folder of the same name under `folders[1]`.

    folders: where runs and their scalars are under --save_dir; name: of this run's folder
    decisions: what is known already of what the run decides; it must be what it was when the run began
    Raises UsageError where the folder is another process's, damaged, or holds a run with other settings.
    """

    # Writing the state may take this part of a run's time; where epochs are too short for it, a state stays
    # in memory until a later epoch, or a signal, has it written.
    SAVE_SHARE = 0.05

    def __init__(self, options: Namespace, folders: tuple[str, str], name: str, network: Classifier, num_classes: int,
                 decisions: dict[str, Any]):
        self.folder = RunFolder(os.path.join(options.save_dir, folders[0], name))
        self.scalar_folder = os.path.join(options.save_dir, folders[1], scalars_folder(name, vars(options)))
        if options.overwrite:
            shutil.rmtree(self.scalar_folder, ignore_errors=True)
            self.folder.clear()
        super().__init__(options, self._read_earlier(options, decisions))
        self.model_name, self.num_classes = network.name, num_classes
        self.best: dict[str, float] = {"top1": -1.0}
        self.lines: list[dict] = []
        self.unwritten: dict | None = None
        self.saved_at = self.save_seconds = 0.0
        self.logger: Any = None
        self.display: Display | None = None

    def start(self, facts, decisions, notes):
        for name, fact in (facts | {"folder": self.folder.path}).items():
            print(f"{name:<10}{fact}", flush=True)
        for note in notes:
            print(note, flush=True)
        self.folder.write("args.json", {
            "settings": vars(self.options), "decisions": decisions, "facts": facts,
            "command": shlex.join(["python", *sys.argv]), "host": socket.gethostname(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "commit": _commit(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        })
        self.logger = _tensorboard_logger(self.scalar_folder)

    def end_step(self, phase, epoch, number, meters):
        if self.display is None or self.display.name != phase.name:
            self.display = Display(phase.name, epoch, phase.epochs, len(phase.loader), self.options.print_freq)
        self.display.step(epoch, number, meters)
        super().end_step(phase, epoch, number, meters)

    def finish(self, phase, facts):
        last = self.lines[-1]
        self._checkpoint(f"{self.model_name}_last.pth", phase, last["epoch"], last["test_top1"])
        self.result = {
            "last": {"epoch": last["epoch"], "top1": last["test_top1"], "top5": last["test_top5"]}, "best": self.best,
            "seconds": round(sum(line["seconds"] for line in self.lines), 1), **facts,
        }
        self.folder.write("result.json", self.result)
        self.folder.remove(STATE)
        self._print_result(self.result, "")

    def report(self):
        self._print_result(self.result, "already finished; ")

    def _print_result(self, result, prefix):
        last, best = result["last"], result["best"]
        print(f"{prefix}test accuracy: last {last['top1']:.2f} (epoch {last['epoch']}), "
              f"best {best['top1']:.2f} (epoch {best['epoch']}); {clock(result['seconds'])} of training; "
              f"in {self.folder.path}", flush=True)
        for shots, group in result.get("shots", {}).items():
            print(f"{shots}-shot test accuracy: {group['top1']:.2f} ({group['classes']} classes)", flush=True)

    def _continue(self, phase, state):
        self.best, self.lines = state["best"], state["lines"]
        self._write_log()
        print(f"continuing after epoch {state['epoch']} of {phase.epochs} ({phase.name})", flush=True)

    def _step_scalars(self, phase, step, averages):
        for name, value in averages.losses.items():
            self.logger.log_value(f"{phase.name}_steps/{name}", value, step)

    def _keep_epoch(self, phase, epoch, averages, tested, seconds):
        line = {"phase": phase.name, "epoch": epoch, "learning_rate": phase.learning_rate(epoch),
                "loss": averages.loss, "losses": averages.losses}
        scalars = {"train_loss": averages.loss} | {f"loss/{name}": value for name, value in averages.losses.items()}
        if tested:
            line |= {"train_top1": averages.top1, "train_top5": averages.top5, "test_loss": tested.loss,
                     "test_top1": tested.top1, "test_top5": tested.top5}
            scalars |= {"train_acc": averages.top1, "test_acc": tested.top1, "test_acc_top5": tested.top5,
                        "test_loss": tested.loss}
        images = len(phase.loader.views) / seconds
        line |= {"seconds": round(seconds, 3), "images_per_second": round(images, 1)}
        self.lines.append(line)
        self._write_log()
        prefix = "" if tested else f"{phase.name}/"
        for name, value in scalars.items():
            self.logger.log_value(prefix + name, value, epoch)
        if tested and tested.top1 > self.best["top1"]:
            self.best = {"epoch": epoch, "top1": tested.top1, "top5": tested.top5}
            self._checkpoint(f"{self.model_name}_best.pth", phase, epoch, tested.top1)
        if tested and epoch % self.options.save_freq == 0:
            self._checkpoint(f"ckpt_epoch_{epoch}.pth", phase, epoch, tested.top1)
        self._keep_state(phase, epoch)
        if self.display is not None:
            self.display.epoch(epoch, averages, tested, self.best, seconds)

    def _checkpoint(self, name, phase, epoch, accuracy):
        """A checkpoint of the network alone: plain data, read by load_model."""
        self.folder.write(name, {
            "model": phase.student.state_dict(), "epoch": epoch, "accuracy": accuracy,
            "optimizer": phase.optimizer.state_dict(), "model_name": self.model_name, "num_classes": self.num_classes,
        })

    def _keep_state(self, phase, epoch):
        self.unwritten = {
            "phase": phase.name, "done": sorted({line["phase"] for line in self.lines} - {phase.name}), "epoch": epoch,
            "modules": {name: module.state_dict() for name, module in phase.modules.items()},
            "optimizer": phase.optimizer.state_dict(), "best": self.best, "lines": self.lines,
        }
        if epoch == phase.epochs or (time.monotonic() - self.saved_at) * self.SAVE_SHARE >= self.save_seconds:
            self._write_state()
        else:
            self.unwritten = copy.deepcopy(self.unwritten)

    def _write_state(self):
        if self.unwritten is not None:
            started = time.monotonic()
            self.folder.write(STATE, self.unwritten)
            self.unwritten, self.saved_at = None, time.monotonic()
            self.save_seconds = self.saved_at - started

    def _write_log(self):
        self.folder.write("log.jsonl", "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def _read_earlier(self, options, decisions) -> Earlier:
        folder, result = self.folder, self.folder.read_json("result.json")
        if result is None and not folder.has(STATE):
            return Earlier()
        held = self._compare(options, decisions)
        if result is not None:
            if folder.has(STATE):  # stopped between its last two acts
                folder.remove(STATE)
            return Earlier(result, None, held)
        if options.resume == "never":
            raise UsageError(f"{folder.path} holds an unfinished run: leave out --resume never to continue it, "
                             "or give --overwrite to start anew")
        return Earlier(None, folder.read_torch(STATE), held)

    def _compare(self, options, decisions):
        """The decisions of the run that the folder holds. Raises UsageError where it is not this one."""
        path, cure = self.folder.path, "give another --save_dir, or --overwrite to start anew"
        held = self.folder.read_json("args.json")
        if held is None:
            raise UsageError(f"{path} holds a run without its args.json, so its settings are not known: bring that "
                             f"file back, {cure}")
        if not isinstance(held.get("settings"), dict) or not isinstance(held.get("decisions"), dict):
            raise UsageError(f"{path} holds a run of an earlier version of this code: {cure}")
        there, now = held["decisions"].get("processes", 1), decisions.get("processes", 1)
        if there != now:
            raise UsageError(f"{path} holds a run of {there} process{'es' * (there > 1)}, and there "
                             f"{'are' if now > 1 else 'is'} {now} now: start as many, or {cure}")
        differ = [f"--{key} {held['settings'].get(key)} there, {value} now" for key, value in vars(options).items()
                  if key not in RESUME_IGNORED_OPTIONS and key in held["settings"] and held["settings"][key] != value]
        differ += [f"{key} {held['decisions'].get(key)} there, {value} now" for key, value in decisions.items()
                   if held["decisions"].get(key) != value]
        if differ:
            raise UsageError(f"{path} holds a run with other settings ({'; '.join(differ)}): {cure}")
        return held["decisions"]


def open_record(options: Namespace, folders: tuple[str, str], name: str, network: Classifier, num_classes: int,
                decisions: dict[str, Any]) -> Record:
    """The record of a run: rank 0 has its folder, the other processes what it has read. Raises as RunRecord."""
    own: list[Record] = []

    def earlier():
        own.append(RunRecord(options, folders, name, network, num_classes, decisions))
        return own[0].earlier

    found = distributed.broadcast_from_rank0(earlier)
    record = own[0] if own else Record(options, found)
    record.listen()
    return record


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
