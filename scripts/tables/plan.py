"""What a table is made of: pairs x methods x settings x trials, each one command line with the weights of its pair."""
import argparse
import itertools
import math
import os
import re
import shlex
from argparse import Namespace
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from distiller_zoo import METHODS, flags_of
from helper import cli
from helper.record import published
from helper.record.naming import student_folder, teacher_folder
from helper.record.records import has_stage, label, read_result, read_run, without_effect
from helper.record.run import RESUME_IGNORED_OPTIONS
from helper.util.errors import UsageError
from models import load_model, model_dict
from scripts.tables.presets import remarks, weights
from scripts.tables.words import FLAGS, setting

ROOT = Path(__file__).resolve().parents[2]
# Flags that a table sets itself, and where to say instead what they say.
RESERVED = {
    "--path_t": "--teachers", "--model_s": "--pairs", "--model": "--pairs", "--distill": "--methods",
    "--trial": "--trials", "--trials": "--trials", "-t": "--trials", "--dataset": "--dataset",
    "--data_dir": "--data_dir", "--save_dir": "--save_dir", "--epochs": "--epochs", "--overwrite": "another --save_dir"}
RESERVED_IN_FLAGS = RESERVED | dict.fromkeys(
    ("-r", "-a", "-b", "--gamma", "--alpha", "--beta", "--avg", "--intra_T"), "--methods and --grid")
# Settings that the machine at hand resolves: a plan does not know them.
RESOLVED = {"device", "amp", "channels_last", "teacher_source", "teacher_cache", "cache_dtype", "fast"}
OF_IKD = {"avg", "intra_T", "ikd_means"}
# What the name of a run's folder tells; runs that differ in other settings need folders of their own.
IN_THE_NAME = {*FLAGS, "avg", "intra_T", "imbalance", "label_noise", "data_seed"}


@dataclass(frozen=True)
class Job:
    """One run: a command line of an entry script.

    name: of the run, unique in the table; argv: after 'python'; epochs: of all its phases; settings: the parsed options
    needs: the name of the job that makes its teacher
    pairs, method, variant, trial: its places in the table, empty for a teacher; a run on the labels alone stands for
        every pair of its student. variant: the settings of a grid, as 'avg 3, intra_T 1'
    remarks: what of it is not published
    """

    name: str
    folder: str
    argv: tuple[str, ...]
    epochs: int
    settings: dict = field(compare=False, repr=False)
    needs: str | None = None
    pairs: tuple[str, ...] = ()
    method: str = ""
    variant: str = ""
    trial: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        return shlex.join(["python", *self.argv])

    @property
    def done(self) -> bool:
        """Whether it has a result; a damaged one is none."""
        try:
            return read_result(self.folder, bool(self.pairs)) is not None
        except UsageError:
            return False

    @property
    def title(self) -> str:
        if not self.pairs:
            return f"teacher {self.settings['model']}"
        what = self.pairs[0] if len(self.pairs) == 1 else self.pairs[0].split("->")[1]
        return f"{what} {self.method}{f' ({self.variant})' if self.variant else ''} trial {self.trial}"


@dataclass(frozen=True)
class Teacher:
    """Where a teacher's checkpoint is, or will be: made by `job`, or by fetching it."""

    model: str
    path: str
    job: Job | None = None
    to_fetch: bool = False


@dataclass(frozen=True)
class Table:
    """title: what it is, and what it is not; jobs: teachers first, in the order in which they should be run."""

    title: str
    pairs: tuple[str, ...]
    jobs: tuple[Job, ...]
    teachers: tuple[Teacher, ...]
    save_dir: str

    @property
    def students(self) -> list[Job]:
        return [job for job in self.jobs if job.pairs]

    def record(self) -> dict:
        """What report.py needs to know of runs that are not there yet, as plain data."""
        keys = ("name", "method", "variant", "trial", "command")
        return {"title": self.title,
                "teachers": [job.command for job in self.jobs if not job.pairs],
                "runs": [{"pair": pair, "folder": os.path.relpath(job.folder, self.save_dir),
                          **{key: getattr(job, key) for key in keys}}
                         for pair in self.pairs for job in self.students if pair in job.pairs]}


def plan(o: Namespace) -> Table:
    """The table that reproduce.py's options ask for. Nothing is written, fetched or run.

    Raises UsageError for whatever no run could be made of.
    """
    named = published.TABLES.get(o.table, {})
    asked, methods = o.pairs or named.get("pairs"), o.methods or named.get("methods")
    if not asked or not methods:
        raise UsageError(f"say which table: --table {'|'.join(published.TABLES)}, or --pairs and --methods "
                         "(such as --pairs resnet56:resnet20 --methods ce,kd,dkd+IKD)")
    grid = o.grid or named.get("grid", {})
    split = [pair.split("->") for pair in asked]
    found = {text: _teacher(text, o) for text in dict.fromkeys(text for text, _ in split)}
    pairs = {f"{found[text].model}->{student}": found[text] for text, student in split}
    teachers = tuple(dict.fromkeys(pairs.values()))
    jobs: dict[Any, Job] = {teacher.job.name: teacher.job for teacher in teachers if teacher.job}
    unread = set(grid)
    if twice := [name for name in grid if as_flags({name: "on"})[0] in o.flags]:
        raise UsageError(f"--flags and --grid both set {', '.join(twice)}: leave it out of --flags")
    # Trial by trial: a table that is stopped early has one of everything.
    for trial, (pair, teacher), spec in itertools.product(o.trials, pairs.items(), methods):
        if spec in named.get("without", {}).get(pair, []):
            continue
        read, students = _students(teacher, pair, spec, grid, trial, o)
        unread -= read
        for job in students:
            # The labels alone do not depend on the teacher: one run serves all pairs of a student.
            key = ("ce", pair.split("->")[1], job.variant, trial) if job.method == "ce" else job.name
            jobs[key] = replace(jobs[key], pairs=(*jobs[key].pairs, pair)) if key in jobs else job
    if unread:
        raise UsageError(f"--grid: no method of this table reads {', '.join(sorted(unread))}: leave it out, or give "
                         "other --methods")
    table = Table(_title(named.get("title", "Table"), o), tuple(pairs), tuple(jobs.values()), teachers, o.save_dir)
    _refuse_other_settings(table)
    return table


def schedule(epochs: int, warmup: bool, stage: bool) -> dict[str, Any]:
    """The options of a schedule of `epochs`, each mark moved in proportion, halves up: 20 -> decay 13,15,18, warm-up 2.

    stage: whether there is a first stage, which shrinks too
    """
    usual = default_recipe()
    if epochs == usual.epochs:
        return {}

    def scaled(mark):
        return math.floor(mark * epochs / usual.epochs + 0.5)

    decay = sorted({scaled(mark) for mark in usual.lr_decay_epochs} - {0})
    return {"epochs": epochs, "lr_decay_epochs": ",".join(map(str, decay)),
            **({"warm_up": scaled(usual.warm_up)} if warmup else {}),
            **({"init_epochs": max(1, scaled(usual.init_epochs))} if stage else {})}


@lru_cache(maxsize=1)
def default_recipe() -> Namespace:
    """The options of a student's run that nothing was asked of: 240 epochs and so on."""
    return cli.student_options(["--path_t", "-"])


def _students(teacher, pair, spec, grid, trial, o):
    """Which names of the grid this method reads, and its runs: one for each combination of their values."""
    given = weights(spec, pair)
    method = METHODS[given["distill"]]
    usual = {"--teacher_cache": "auto", "--cache_dir": os.path.join(o.save_dir, "teacher_cache")}
    marks = schedule(o.epochs, True, has_stage(method))  # which a grid may set

    def argv(options, save_dir=o.save_dir):
        return ["--path_t", teacher.path, "--model_s", pair.split("->")[1], *as_flags(options), "--trial", trial,
                *as_flags({name: mark for name, mark in marks.items() if name not in options}), *_common(o, save_dir),
                *(x for flag, value in usual.items() if flag not in o.flags for x in (flag, value)), *o.flags]

    readable = {flag.name[2:] for flag in flags_of(method)} | (OF_IKD if "+IKD" in spec else set())
    of_methods = {flag.name[2:] for other in METHODS.values() for flag in flags_of(other)} | OF_IKD
    names = [name for name in grid if name in readable or name not in of_methods]
    plain, read, jobs = cli.student_options(argv(given)), set(), {}
    # A variant whose weights are those of its method, as kd+view, would have the same folder.
    twin = weights("+".join([given["distill"], *(part for part in ("KD", "IKD") if part in spec.split("+"))]), pair)
    like = twin != given and all(twin.get(key) == given.get(key) for key in IN_THE_NAME)
    for values in itertools.product(*(grid[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        settings = vars(cli.student_options(argv(given | chosen)) if chosen else plain)
        # The device is not known yet, so that its own flags count.
        silent = without_effect(settings) - {"cache_dtype", "tf32", "deterministic"}
        acting = {name: value for name, value in chosen.items() if name not in silent}
        read |= set(acting)
        # What a folder's name does not tell stands above it, unless it is what the run has anyway.
        apart = [spec] * like + [f"{name}:{value}" for name, value in acting.items()
                                 if name not in IN_THE_NAME and settings[name] != vars(plain)[name]]
        save_dir = os.path.join(o.save_dir, "grid", ",".join(apart).replace("/", "_")) if apart else o.save_dir
        own = argv(given | acting, save_dir)
        options = cli.student_options(own) if acting or apart else plain
        folder = student_folder(options, teacher.model)
        stage = options.init_epochs if has_stage(method) and options.beta != 0 else 0
        variant = ", ".join(setting(name, value) for name, value in acting.items() if len(grid[name]) > 1)
        # Values without effect in this run make the same run again.
        jobs[tuple(acting.items())] = Job(
            ",".join([*apart, folder]).replace("/", "_"), os.path.join(save_dir, "student_model", folder),
            (script("train_student.py"), *own), options.epochs + stage, vars(options),
            needs=teacher.job.name if teacher.job else None, pairs=(pair,), method=label(vars(options)),
            variant=variant, trial=trial, remarks=tuple(remarks(vars(options), pair)))
    return read, list(jobs.values())


def as_flags(options: dict[str, Any]) -> list[str]:
    """The command line of these options: numbers as short as they are, 'on' and 'off' for flags without a value."""
    argv, bare = [], vars(default_recipe())
    for name, value in options.items():
        flag = FLAGS.get(name, f"--{name}")
        if isinstance(bare.get(name), bool):
            argv += [flag] if value == "on" else []
        else:
            argv += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return argv


def _teacher(model, o):
    """Where the teacher comes from: a pair's own file, else the word or path that `--teachers` has for it."""
    if model not in model_dict:
        return Teacher(load_model(model)[0].name, model)
    sources = dict(text.split("=", 1) if "=" in text else ["", text] for text in o.teachers)
    source = sources.get(model) or sources.get("")
    if not source:
        raise UsageError(f"--teachers says nothing of {model}: give fetch, train, a folder, or {model}=FILE")
    if source == "fetch":
        if model not in published.TEACHERS:
            raise UsageError(f"no teacher {model} is published ({', '.join(published.TEACHERS)} are): "
                             f"give --teachers train, or {model}=FILE")
        if o.dataset != published.DATASET:
            raise UsageError(f"the published teachers are of {published.DATASET}: give --teachers train or a path")
        path = os.path.join(o.save_dir, "models", f"{model}_vanilla", "ckpt_epoch_240.pth")
        return Teacher(model, path, to_fetch=not os.path.exists(path))
    if source == "train":
        argv = ["--model", model, "--trial", "0",
                *as_flags(schedule(o.teacher_epochs or o.epochs, False, False)), *_common(o, o.save_dir),
                *o.teacher_flags]
        options = cli.teacher_options(argv)
        folder = os.path.join(o.save_dir, "models", teacher_folder(options))
        job = Job(os.path.basename(folder), folder, (script("train_teacher.py"), *argv), options.epochs,
                  vars(options))
        return Teacher(model, os.path.join(folder, f"{model}_last.pth"), job)
    path = _checkpoint_in(source, model) if os.path.isdir(source) else source
    found = load_model(path)[0].name
    if found != model:
        raise UsageError(f"{path} is a {found}, not a {model}: give --teachers {model}=FILE")
    return Teacher(model, path)


def _common(o, save_dir):
    return ["--dataset", o.dataset, "--data_dir", o.data_dir, "--save_dir", save_dir]


def script(name: str) -> str:
    """Where it is from here, so that a command line that is printed can be run by hand, and holds no more of this
    machine."""
    return os.path.relpath(ROOT / name)


def _checkpoint_in(folder, model):
    """The one checkpoint of `model` in a folder, or in a folder in it: the published one, a last epoch's, or the only
    one whose name says so."""
    word = re.compile(rf"(?<![A-Za-z0-9]){model}(?![A-Za-z0-9])")
    files = sorted(path for pattern in ("*.pth", "*.pt", "*/*.pth", "*/*.pt") for path in Path(folder).glob(pattern))
    own = [path for path in files if (f"{path.parent.name}_".startswith(f"{model}_")
                                      or (path.parent == Path(folder) and word.search(path.name)))]
    # 'resnet32x4' is no 'resnet32', but 'wrn_40_2_vanilla' begins with no other model's name.
    preferred = [path for path in own if path.name in ("ckpt_epoch_240.pth", f"{model}_last.pth")] or own
    if len(preferred) != 1:
        found = "no checkpoint" if not own else "several checkpoints"
        raise UsageError(f"{folder} holds {found} of {model}: give --teachers {model}=FILE")
    return str(preferred[0])


def _title(title, o):
    usual = default_recipe().epochs
    short = f" (the published schedule is {usual} epochs: no reproduction)" if o.epochs != usual else ""
    return f"{title}: {o.dataset}, {o.epochs} epochs, {len(o.trials)} trial{'s' * (len(o.trials) != 1)}{short}"


def _refuse_other_settings(table):
    """A folder's name does not tell every setting: a run of others in the place of one of ours is refused now."""
    for job in table.jobs:
        try:
            record = read_run(job.folder)
        except UsageError:  # the run itself will say what is damaged, and stops no other
            continue
        held = record.settings if record else {}
        differ = [f"--{key} {held[key]} there, {value} now" for key, value in job.settings.items()
                  if key in held and key not in RESUME_IGNORED_OPTIONS | RESOLVED and held[key] != value]
        if differ:
            raise UsageError(f"{job.folder} holds a run with other settings ({'; '.join(differ)}): "
                             "give another --save_dir")


def pair_of(text: str) -> str:
    """'resnet56:resnet20' or 'FILE:resnet20' -> 'resnet56->resnet20': a type of argparse."""
    teacher, _, student = text.replace("->", ":").rpartition(":")
    if student not in model_dict or not (teacher in model_dict or teacher.endswith((".pth", ".pt"))):
        raise argparse.ArgumentTypeError(f"'{text}' is not a pair such as resnet56:resnet20 or FILE.pth:resnet20; the "
                                         f"networks are {', '.join(model_dict)}")
    return f"{teacher}->{student}"


def grid_of(text: str) -> dict[str, list[str]]:
    """'avg=0.5,1 kd_T=2,4' -> {'avg': ['0.5', '1'], 'kd_T': ['2', '4']}: a type of argparse.

    Values that hold commas are separated by semicolons: 'lr_decay_epochs=150,180;100,200'.
    """
    grid: dict[str, list[str]] = {}
    short = {flag[1:]: name for name, flag in FLAGS.items()}
    for part in shlex.split(text):
        name, equals, values = part.lstrip("-").partition("=")
        name = short.get(name, name)
        found = [value for value in values.split(";" if ";" in values else ",") if value]
        if not equals or not found or name in grid:
            raise argparse.ArgumentTypeError(f"'{text}' is not a grid such as \"avg=0.5,1,2 intra_T=1,4 kd_T=2,4\"")
        if f"--{name}" in RESERVED:
            raise argparse.ArgumentTypeError(f"{name} is set by the table: use {RESERVED[f'--{name}']}")
        grid[name] = list(dict.fromkeys(found))
    return grid


def reserved(flags: list[str], own: str) -> None:
    """Raises UsageError where passed-through flags say what the table itself says."""
    for flag in flags:
        name = flag.split("=")[0] if flag.startswith("--") else flag[:2]
        if name in RESERVED_IN_FLAGS:
            raise UsageError(f"{own} cannot hold {name}, which the table sets: use {RESERVED_IN_FLAGS[name]}")
