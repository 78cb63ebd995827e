"""What a table is made of: pairs x methods x trials, each one command line with the weights of its pair."""
import argparse
import json
import math
import os
import re
import shlex
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path

from distiller_zoo import METHODS
from helper import cli
from helper.record import published
from helper.record.naming import student_folder, teacher_folder
from helper.record.records import has_stage, label
from helper.record.run import RESUME_IGNORED_OPTIONS
from helper.util.errors import UsageError
from models import load_model, model_dict

ROOT = Path(__file__).resolve().parents[2]
# Flags that a table sets itself, and where to say instead what they say.
RESERVED = {
    "--path_t": "--teachers", "--model_s": "--pairs", "--model": "--pairs", "--distill": "--methods",
    "--trial": "--trials", "--trials": "--trials", "-t": "--trials", "--avg": "--avg", "--intra_T": "--intra_T",
    "-r": "--methods", "-a": "--methods", "-b": "--methods", "--gamma": "--methods", "--alpha": "--methods",
    "--beta": "--methods", "--dataset": "--dataset", "--data_dir": "--data_dir", "--save_dir": "--save_dir",
    "--epochs": "--epochs", "--overwrite": "another --save_dir"}
# Settings that the machine at hand resolves: a plan does not know them.
RESOLVED = {"device", "amp", "channels_last", "teacher_source", "teacher_cache", "cache_dtype", "fast"}
TEACHER_TRIAL = "0"


@dataclass(frozen=True)
class Job:
    """One run: a command line of an entry script.

    name: of the run's folder; argv: after 'python'; epochs: of all its phases; settings: the parsed options
    needs: the name of the job that makes its teacher
    pair, method, variant, trial: its place in the table, empty for a teacher; variant: IKD's settings where the table
        has several, as 'avg 3, intra_T 1'
    remarks: what of it is not published
    """

    name: str
    folder: str
    argv: tuple[str, ...]
    epochs: int
    settings: dict = field(compare=False, repr=False)
    needs: str | None = None
    pair: str = ""
    method: str = ""
    variant: str = ""
    trial: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        return shlex.join(["python", *self.argv])

    @property
    def done(self) -> bool:
        return os.path.exists(os.path.join(self.folder, "result.json"))

    @property
    def title(self) -> str:
        variant = f" ({self.variant})" if self.variant else ""
        return (f"{self.pair} {self.method}{variant} trial {self.trial}" if self.pair
                else f"teacher {self.settings['model']}")


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
    jobs: tuple[Job, ...]
    teachers: tuple[Teacher, ...]

    @property
    def students(self) -> list[Job]:
        return [job for job in self.jobs if job.pair]

    def record(self) -> dict:
        """What report.py needs to know of runs that are not there yet, as plain data."""
        keys = ("name", "pair", "method", "variant", "trial", "command")
        return {"title": self.title,
                "teachers": [job.command for job in self.jobs if not job.pair],
                "runs": [{key: getattr(job, key) for key in keys} for job in self.students]}


def plan(o: Namespace) -> Table:
    """The table that reproduce.py's options ask for. Nothing is written, fetched or run.

    Raises UsageError for whatever no run could be made of.
    """
    named = published.TABLES.get(o.table, {})
    pairs, methods = o.pairs or named.get("pairs"), o.methods or named.get("methods")
    if not pairs or not methods:
        raise UsageError(f"say which table: --table {'|'.join(published.TABLES)}, or --pairs and --methods "
                         "(such as --pairs resnet56:resnet20 --methods ce,kd,dkd+IKD)")
    avgs, temperatures = o.avg or named.get("avg", []), o.intra_T or named.get("intra_T", [])
    teachers = {model: _teacher(model, o) for model in dict.fromkeys(pair.split("->")[0] for pair in pairs)}
    jobs = [teacher.job for teacher in teachers.values() if teacher.job]
    # Trial by trial: a table that is stopped early has one of everything.
    for trial in o.trials:
        for pair in pairs:
            for spec in methods:
                if spec not in named.get("without", {}).get(pair, []):
                    losses = weights(spec, pair, avgs, temperatures)
                    for flags in losses:
                        jobs.append(_student(teachers[pair.split("->")[0]], pair, spec, flags, trial, o))
                        if len(losses) > 1:
                            variant = f"avg {flags['--avg']:g}, intra_T {flags['--intra_T']:g}"
                            jobs[-1] = replace(jobs[-1], variant=variant)
    table = Table(_title(named.get("title", "Table"), o), tuple(jobs), tuple(teachers.values()))
    _refuse_other_settings(table)
    return table


def weights(spec: str, pair: str, avgs: list[float], temperatures: list[float]) -> list[dict]:
    """'dkd+IKD' -> its flags for this pair; with IKD, one dict for each of avgs x temperatures (empty: IKD's own).

    spec: METHOD, or ce for cross-entropy alone; then +KD for the KD loss that methods on features can add, and +IKD
    Raises UsageError.
    """
    base, *added = spec.split("+")
    distill = published.WEIGHTS.get(base, {}).get("distill", base)
    if distill not in METHODS or added != [part for part in ("KD", "IKD") if part in added]:
        raise UsageError(f"'{spec}' is not a method: give ce or one of {', '.join(METHODS)}, and after it "
                         "+KD, +IKD or +KD+IKD if wanted")
    flags, method = preset(base, pair)[0], METHODS[distill]
    if "KD" in added:
        if base != distill or not method.alpha_adds_kd or method.alpha is None:
            able = [name for name, m in METHODS.items() if m.alpha_adds_kd and m.alpha is not None]
            raise UsageError(f"'{spec}': KD can be added to {', '.join(able)}")
        flags = flags | published.ADDED_KD["flags"]
    if "IKD" not in added:
        return [flags]
    own = published.IKD["flags"]
    return [flags | {"--avg": avg, "--intra_T": T} for avg in avgs or [own["--avg"]]
            for T in temperatures or [own["--intra_T"]]]


def preset(base: str, pair: str) -> tuple[dict, list[str]]:
    """The flags of a method for a pair, and in words what of them is not published.

    base: ce or a method; what published.json does not name has its class's defaults
    """
    known = published.WEIGHTS.get(base)
    if known is None:
        method = METHODS[base]
        flags = {"--distill": base, "-r": 1}
        flags |= {"-a": 0} if method.alpha_adds_kd and method.alpha is not None else {}
        flags |= {} if method.beta is None else {"-b": method.beta}
        return flags, [] if method.beta_published else [f"no weight of {base} is published"]
    flags = {"--distill": known.get("distill", base), **known["flags"], **known.get("pairs", {}).get(pair, {})}
    elsewhere = "pairs" in known and pair not in known["pairs"]
    return flags, [f"{base}'s weights are published for other pairs: its defaults are used"] if elsewhere else []


def remarks(settings: dict, pair: str) -> list[str]:
    """What of a run's weights is not the published choice, in words, from its settings; [] off CIFAR-100, where
    nothing is published at all."""
    name, distill = label(settings), settings["distill"]
    base = name.split("+")[0]
    if settings["dataset"] != published.DATASET or distill not in METHODS:
        return []
    flags, said = preset(base, pair)
    if "+KD" in name:
        flags = flags | published.ADDED_KD["flags"]
        if base not in published.ADDED_KD["methods"]:
            said.append("the weight of the added KD is not published for this method")
    held = {"-r": settings["gamma"], "-a": settings["alpha"], "-b": settings["beta"], "--kd_T": settings.get("kd_T")}
    other = [f"{key.lstrip('-')} {held[key]:g} instead of {value:g}" for key, value in flags.items()
             if key in held and held[key] is not None and held[key] != value]
    if other:
        said.append("not the preset: " + ", ".join(other))
    if settings.get("avg"):
        asked, own = {"--avg": settings["avg"], "--intra_T": settings["intra_T"]}, published.IKD
        if asked != own["flags"] or [pair, base] not in own["published"]:
            said.append(f"IKD's avg {settings['avg']:g} and intra_T {settings['intra_T']:g} are not published for "
                        f"{base} on this pair")
    return said


def schedule(epochs: int, warmup: bool, stage: bool) -> list[str]:
    """The flags of a schedule of `epochs`, each mark moved in proportion, halves up: 20 -> decay 13,15,18, warm-up 2.

    stage: whether there is a first stage, which shrinks too
    """
    usual = default_recipe()
    if epochs == usual.epochs:
        return []

    def scaled(mark):
        return math.floor(mark * epochs / usual.epochs + 0.5)

    decay = sorted({scaled(mark) for mark in usual.lr_decay_epochs} - {0})
    flags = ["--epochs", str(epochs), "--lr_decay_epochs", ",".join(map(str, decay))]
    flags += ["--warm_up", str(scaled(usual.warm_up))] if warmup else []
    return flags + (["--init_epochs", str(max(1, scaled(usual.init_epochs)))] if stage else [])


def default_recipe() -> Namespace:
    """The options of a student's run that nothing was asked of: 240 epochs and so on."""
    return cli.student_options(["--path_t", "-"])


def _student(teacher, pair, spec, flags, trial, o):
    epochs, method = o.epochs or default_recipe().epochs, METHODS[flags["--distill"]]
    argv = ["--path_t", teacher.path, "--model_s", pair.split("->")[1], *(str(x) for kv in flags.items() for x in kv),
            "--trial", trial, *schedule(epochs, True, has_stage(method)), *_common(o)]
    cache = {"--teacher_cache": "auto", "--cache_dir": os.path.join(o.save_dir, "teacher_cache")}
    argv += [x for flag, value in cache.items() if flag not in o.flags for x in (flag, value)] + o.flags
    options = cli.student_options(argv)
    stage = options.init_epochs if has_stage(method) and options.beta != 0 else 0
    name = student_folder(options, teacher.model)
    return Job(name, os.path.join(o.save_dir, "student_model", name), (_script("train_student.py"), *argv),
               options.epochs + stage, vars(options), needs=teacher.job.name if teacher.job else None, pair=pair,
               method=spec, trial=trial, remarks=tuple(remarks(vars(options), pair)))


def _teacher(model, o):
    """Where the teacher comes from: the word or path that `--teachers` has for it."""
    named = dict(text.split("=", 1) for text in o.teachers if "=" in text)
    general = [text for text in o.teachers if "=" not in text]
    source = named.get(model) or (general[-1] if general else None)
    if source is None:
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
        epochs = o.teacher_epochs or o.epochs or default_recipe().epochs
        argv = ["--model", model, "--trial", TEACHER_TRIAL, *schedule(epochs, False, False), *_common(o),
                *o.teacher_flags]
        options = cli.teacher_options(argv)
        folder = os.path.join(o.save_dir, "models", teacher_folder(options))
        job = Job(os.path.basename(folder), folder, (_script("train_teacher.py"), *argv), options.epochs,
                  vars(options))
        return Teacher(model, os.path.join(folder, f"{model}_last.pth"), job)
    return Teacher(model, _checkpoint_in(source, model) if os.path.isdir(source) else _checked(source, model))


def _common(o):
    return ["--dataset", o.dataset, "--data_dir", o.data_dir, "--save_dir", o.save_dir]


def _script(name):
    """From here, so that a command line that is printed can be run by hand, and holds no more of this machine."""
    return os.path.relpath(ROOT / name)


def _checkpoint_in(folder, model):
    """The one checkpoint of `model` in a folder, or in a folder in it: the published one, a last epoch's, or the only
    one whose name says so."""
    word = re.compile(rf"(?<![A-Za-z0-9]){model}(?![A-Za-z0-9])")
    files = sorted(path for suffix in ("pth", "pt") for depth in ("*.", "*/*.") for path in
                   Path(folder).glob(depth + suffix))
    own = [path for path in files if (f"{path.parent.name}_".startswith(f"{model}_")
                                      or (path.parent == Path(folder) and word.search(path.name)))]
    # 'resnet32x4' is no 'resnet32', but 'wrn_40_2_vanilla' begins with no other model's name.
    preferred = [path for path in own if path.name in ("ckpt_epoch_240.pth", f"{model}_last.pth")] or own
    if len(preferred) != 1:
        found = "no checkpoint" if not own else "several checkpoints"
        raise UsageError(f"{folder} holds {found} of {model}: give --teachers {model}=FILE")
    return _checked(str(preferred[0]), model)


def _checked(path, model):
    """The path, once the checkpoint there is one of `model`. Raises UsageError or CheckpointError."""
    network, _ = load_model(path)
    if network.name != model:
        raise UsageError(f"{path} is a {network.name}, not a {model}: give --teachers {model}=FILE")
    return path


def _title(title, o):
    usual, epochs = default_recipe().epochs, o.epochs or default_recipe().epochs
    teachers = f"{o.dataset}, {epochs} epochs, {len(o.trials)} trial{'s' * (len(o.trials) != 1)}"
    short = f" (the published schedule is {usual} epochs: no reproduction)" if epochs != usual else ""
    return f"{title}: {teachers}{short}"


def _refuse_other_settings(table):
    """A folder's name does not tell every setting: a run of others in the place of one of ours is told now."""
    for job in table.jobs:
        path = os.path.join(job.folder, "args.json")
        if not os.path.exists(path):
            continue
        with open(path) as file:
            try:
                held = json.load(file)["settings"]
            except (ValueError, KeyError):
                raise UsageError(f"{path} is damaged: remove its folder, or give another --save_dir") from None
        differ = [f"--{key} {held[key]} there, {value} now" for key, value in job.settings.items()
                  if key in held and key not in RESUME_IGNORED_OPTIONS | RESOLVED and held[key] != value]
        if differ:
            raise UsageError(f"{job.folder} holds a run with other settings ({'; '.join(differ)}): "
                             "give another --save_dir")


def pair_of(text: str) -> str:
    """'resnet56:resnet20' -> 'resnet56->resnet20': a type of argparse."""
    networks = text.replace("->", ":").split(":")
    if len(networks) != 2 or any(network not in model_dict for network in networks):
        raise argparse.ArgumentTypeError(f"'{text}' is not a pair such as resnet56:resnet20; the networks are "
                                         f"{', '.join(model_dict)}")
    return "->".join(networks)


def reserved(flags: list[str], own: str) -> None:
    """Raises UsageError where passed-through flags say what the table itself says."""
    for flag in flags:
        name = flag.split("=")[0] if flag.startswith("--") else flag[:2]
        if name in RESERVED:
            raise UsageError(f"{own} cannot hold {name}, which the table sets: use {RESERVED[name]}")


