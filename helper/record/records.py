"""Reading the folders of students' runs: the one reader of what helper/record/run.py writes."""
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from distiller_zoo import METHODS, Method
from helper.cli import flags_of
from helper.record.run import RESUME_IGNORED_OPTIONS

# No part of a row's identity: what does not touch the result, the trial, what the pair says (model_s), and what
# the identity has in a resolved form (fast, teacher_cache, path_t).
_LEFT_OUT = RESUME_IGNORED_OPTIONS | {"trial", "model_s", "fast", "teacher_cache", "path_t"}


@dataclass(frozen=True)
class Record:
    """A student's run folder.

    settings: every resolved option; result: None while the run is unfinished; log: a dict for each epoch
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
    def trial(self) -> str:
        return self.settings["trial"]

    @property
    def method(self) -> str:
        """As 'dkd+IKD': see label."""
        return label(self.settings)

    @property
    def teacher(self) -> str:
        """The teacher's model, from the folder's name: S:{student}_T:{teacher}_{data set}_{method}_r:..."""
        s = self.settings
        return self.name.removeprefix(f"S:{s['model_s']}_T:").split(f"_{s['dataset']}_{s['distill']}_r:")[0]

    @property
    def pair(self) -> str:
        return f"{self.teacher}->{self.settings['model_s']}"

    @cached_property
    def identity(self) -> dict:
        """Every setting that may touch the result, and the teacher: equal for the trials of one row, and only for them.

        A setting that this file does not know is part of it; one without effect in this run is not.
        """
        identity = {key: value for key, value in self.settings.items()
                    if key not in _LEFT_OUT and key not in _without_effect(self.settings)}
        identity["teacher_checkpoint"] = self.settings["path_t"]
        if self.result:
            # A teacher trained anew under the same path is another one. The accuracy of one and the same teacher
            # may differ in the hundredths between kinds of arithmetic.
            identity["teacher_top1"] = round(self.result["teacher_top1"], 1)
        return identity

    def curve(self, field: str) -> list[float]:
        """A field of the student's own epochs, as 'test_top1', an epoch an element."""
        return [line[field] for line in self.log if line["phase"] == "train"]


def read_records(save_dir: str | Path) -> tuple[list[Record], list[str]]:
    """All students' runs under save_dir, oldest first, and a line for each folder that cannot be read."""
    records, faults = [], []
    for path in Path(save_dir).glob("student_model/*/args.json"):
        try:
            records.append((path.stat().st_mtime, _read(path.parent)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            faults.append(f"{path.parent} cannot be read ({type(error).__name__}: {error}): left out")
    return [record for _, record in sorted(records, key=lambda found: (found[0], found[1].name))], faults


def _read(folder):
    arguments = json.loads((folder / "args.json").read_text())
    result, log = folder / "result.json", folder / "log.jsonl"
    record = Record(
        folder, arguments["settings"], arguments["facts"], arguments["command"], arguments["commit"],
        arguments["versions"]["torch"],
        json.loads(result.read_text()) if result.exists() else None,
        [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else [])
    if record.result:
        _ = record.result["last"]["top1"], record.result["best"]["top1"], record.identity  # must be there
    return record


def label(settings: dict) -> str:
    """A short name of a student's loss, such as 'dkd+IKD'; 'ce' where the method itself has no say.

    settings: distill, alpha, beta and avg, as args.json has them
    """
    own = settings["distill"] if _acts(settings) else "ce"
    return own + ("+KD" if _adds_kd(settings) else "") + ("+IKD" if settings.get("avg") else "")


def has_stage(method: type[Method] | None) -> bool:
    """Whether a method trains something before the student's own epochs."""
    return method is not None and method.stage is not Method.stage


def _acts(settings):
    """Whether the method's own loss has a weight, in its first stage or after."""
    method = METHODS.get(settings["distill"])
    if method is None:  # its file is gone
        return True
    return bool(settings["beta"]) or (settings["alpha"] != 0 and not method.alpha_adds_kd)


def _adds_kd(settings):
    method = METHODS.get(settings["distill"])
    return method is not None and method.alpha_adds_kd and settings["alpha"] != 0


def _without_effect(settings):
    method = METHODS.get(settings["distill"])
    own = {flag.name[2:] for flag in method.flags} if method else set()
    silent = {flag.name[2:] for flag in flags_of(method)} - own if method and not _adds_kd(settings) else set()
    silent |= own if not _acts(settings) else set()
    silent |= set() if settings.get("avg") else {"intra_T", "ikd_means"}
    silent |= set() if settings.get("teacher_source") == "cache" else {"cache_dtype"}
    silent |= set() if settings.get("device") == "cuda" else {"tf32", "deterministic"}
    silent |= set() if has_stage(method) else {"init_epochs"}
    return silent
