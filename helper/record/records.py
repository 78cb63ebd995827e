"""The one reader of what helper/record/run.py writes: a run's folder, and all those under a --save_dir."""
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

from distiller_zoo import METHODS, Method, flags_of
from helper.util.errors import UsageError

# No part of a row's identity: what does not touch the result, the trial, what the pair says, and what the identity
# has in a resolved form (fast, teacher_cache, the teacher).
_LEFT_OUT = {"print_freq", "tb_freq", "save_freq", "num_workers", "data_dir", "save_dir", "cache_dir", "overwrite",
             "resume", "trial", "model_s", "fast", "teacher_cache", "path_t", "teacher", "teacher_sha256"}
# What the loss is made of; the other settings say how it is trained.
LOSS = ("distill", "gamma", "alpha", "beta", "avg", "intra_T", "ikd_means")
# What a flag of a method adds to the name of a run's loss.
_VARIANTS = (("sdd", "kd", "-kd"), ("wkd", "f", "-f"), ("wkd", "lf", "-lf"), ("mlkd_views", 1, "-1view"),
             ("logit_std", "on", "+ls"), ("second_view", "on", "+view"))
_OF_THE_TEACHER = {"teacher_checkpoint", "teacher_top1", "teacher_source", "cache_dtype"}
_STUDENT: dict[str, type] = {"distill": str, "model_s": str, "dataset": str, "trial": str, "path_t": str, "epochs": int,
                             "warm_up": int, "gamma": Real, "alpha": Real, "beta": Real}


@dataclass(frozen=True)
class Record:
    """A run's folder.

    settings: every resolved option, and what the run decided beside them; facts: the same in words
    result: None while the run is unfinished; log: a dict for each epoch, of all its phases
    """

    folder: Path
    settings: dict
    facts: dict
    command: str
    commit: str | None
    torch: str
    result: dict | None
    log: list[dict]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def final(self) -> dict:
        """The result of a finished run."""
        assert self.result is not None
        return self.result

    @property
    def is_student(self) -> bool:
        return "distill" in self.settings

    @property
    def trial(self) -> str:
        return str(self.settings["trial"])

    @property
    def method(self) -> str:
        """As 'dkd+IKD': see label."""
        return label(self.settings)

    @property
    def teacher(self) -> str:
        """The name of a student's teacher."""
        named = self.settings.get("teacher") or (self.result or {}).get("teacher")
        return named or self.facts["teacher"].split(",")[0]

    @property
    def pair(self) -> str:
        return f"{self.teacher}->{self.settings['model_s']}"

    @cached_property
    def identity(self) -> dict:
        """Every setting that may touch a student's result, and its teacher: equal for the trials of one row, and only
        for them.

        A setting that this file does not know is part of it; one without effect in this run is not.
        """
        silent = without_effect(self.settings)
        identity = {key: value for key, value in self.settings.items() if key not in _LEFT_OUT}
        identity["teacher_checkpoint"] = (self.settings.get("teacher_sha256") or "")[:12] or self.settings["path_t"]
        if self.result and not self.settings.get("teacher_sha256"):
            # A teacher trained anew under the same path is another one. The accuracy of one and the same teacher
            # may differ in the hundredths between kinds of arithmetic.
            identity["teacher_top1"] = round(self.result["teacher_top1"], 1)
        return {key: value for key, value in identity.items() if key not in silent}

    def curve(self, field: str) -> list[float]:
        """A field of the student's own epochs, as 'test_top1', an epoch an element."""
        return [line[field] for line in self.log if line["phase"] == "train"]


def read_run(folder: str | Path) -> Record | None:
    """The record of the run in `folder`, a student's or a teacher's; None where there is no args.json.

    Raises UsageError where a file there is damaged.
    """
    folder = Path(folder)
    args = _read(folder / "args.json", json.loads, _is_args)
    if args is None:
        return None
    student = "distill" in args["settings"]
    result = read_result(folder, student)
    log = _read(folder / "log.jsonl", lambda text: [json.loads(line) for line in text.splitlines()], _is_log)
    record = Record(folder, args["settings"] | args.get("decisions", {}), args["facts"], str(args.get("command", "")),
                    args.get("commit"), str(args["versions"].get("torch")), result, log or [])
    if student and not (record.settings.get("teacher") or result or isinstance(record.facts.get("teacher"), str)):
        raise _damaged(folder / "args.json")
    return record


def read_result(folder: str | Path, student: bool) -> dict | None:
    """What result.json of a student's or a teacher's run holds; None for an unfinished run.

    Raises UsageError where it is damaged.
    """
    return _read(Path(folder) / "result.json", json.loads, lambda content: _is_result(content, student))


def read_records(save_dir: str | Path) -> tuple[list[Record], list[str]]:
    """All students' runs under save_dir and its grid/ folders, and a line for each folder that cannot be read."""
    records, faults = [], []
    paths = [path for pattern in ("", "grid/*/") for path in Path(save_dir).glob(f"{pattern}student_model/*/args.json")]
    for path in sorted(paths):
        try:
            record = read_run(path.parent)
            if record is None or not record.is_student:
                raise _damaged(path)
            records.append(record)
        except UsageError as error:
            faults.append(f"{error}; the run is left out")
    return records, faults


def _read(path: Path, parse: Callable[[str], Any], holds: Callable[[Any], bool]):
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): make it readable, or move its folder "
                         "away") from None
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not holds(content):
        raise _damaged(path)
    return content


def _damaged(path):
    return UsageError(f"{path} is damaged: bring it back from a copy, or move its folder away")


def _has(content, **kinds: type) -> bool:
    """Whether it is an object that has these keys with values of these kinds; numbers are finite."""
    return isinstance(content, dict) and all(
        isinstance(content.get(key), kind) and (kind is not Real or math.isfinite(content[key]))
        for key, kind in kinds.items())


def _is_args(content):
    return (_has(content, settings=dict, facts=dict, versions=dict) and isinstance(content.get("decisions", {}), dict)
            and _has(content["settings"], **(_STUDENT if "distill" in content["settings"] else {"model": str})))


def _is_result(content, student):
    return (_has(content, seconds=Real, **({"teacher_top1": Real} if student else {}))
            and all(_has(content.get(name), epoch=Real, top1=Real, top5=Real) for name in ("last", "best")))


def _is_log(lines):
    return all(_has(line, phase=str, epoch=int) and (line["phase"] != "train" or _has(line, test_top1=Real))
               for line in lines)


def label(settings: dict) -> str:
    """A short name of a student's loss, such as 'dkd+IKD'; 'ce' where the method itself has no say, '+ls' where it
    reads standardised logits, '+view' where kd reads a second view, '+dot' where DOT trains it, 'wkd-lf' and so on.

    settings: distill, alpha, beta and avg, as args.json has them
    """
    method, acts = METHODS.get(settings["distill"]), _acts(settings)
    reads = {flag.name[2:] for flag in method.flags} if method else set()
    said = "".join(text for flag, value, text in _VARIANTS if flag in reads and settings.get(flag) == value)
    said += "+dot" if settings.get("optimizer") == "dot" else ""
    own = settings["distill"] + said if acts else "ce"
    return own + ("+KD" if _adds_kd(settings) else "") + ("+IKD" if settings.get("avg") else "")


def has_stage(method: type[Method] | None) -> bool:
    """Whether a method trains something before the student's own epochs."""
    return method is not None and method.stage is not Method.stage


def _adds_kd(settings):
    method = METHODS.get(settings["distill"])
    return method is not None and method.alpha_adds_kd and settings["alpha"] != 0


def _acts(settings):
    """Whether the method's own loss has a weight, in its first stage or after; assumed where its file is gone."""
    known = settings["distill"] in METHODS
    return not known or bool(settings["beta"]) or (settings["alpha"] != 0 and not _adds_kd(settings))


def without_effect(settings: dict) -> set[str]:
    """The names of the settings that do not touch the result of a student's run, given the others."""
    method = METHODS.get(settings["distill"])
    own = {flag.name[2:] for flag in method.flags} if method else set()
    silent = {flag.name[2:] for flag in flags_of(method)} - own if method and not _adds_kd(settings) else set()
    silent |= own if not _acts(settings) else set()
    silent |= set() if settings.get("avg") else {"intra_T", "ikd_means"}
    silent |= set() if settings.get("teacher_source") == "cache" else {"cache_dtype"}
    silent |= set() if settings.get("device") == "cuda" else {"tf32", "deterministic"}
    silent |= set() if has_stage(method) else {"init_epochs"}
    if label(settings) == "ce":  # the labels alone
        silent |= _OF_THE_TEACHER | {"distill"}
    return silent
