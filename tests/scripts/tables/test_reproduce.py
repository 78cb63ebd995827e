"""Tables: the command lines they are made of, and how their runs are started, stopped, resumed and retried."""
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distiller_zoo import METHODS
from helper.cli import student_options, teacher_options
from helper.record import published
from helper.record.naming import scalars_folder
from helper.record.records import label, read_records
from helper.schedule import schedule as learning_rates
from helper.util.errors import Interrupted
from models import model_dict
from scripts.tables.plan import Job, _flags, plan, schedule
from scripts.tables.presets import preset, remarks, weights
from scripts.tables.runner import Display, Local, Logs, Stop, held, progress_of, run_jobs, slots
from tests.support import scripts

GOOD = {"--pairs": "resnet14:resnet8", "--methods": "kd", "--trials": "1", "--dataset": "digits"}


def script():
    """reproduce.py as a module."""
    spec = importlib.util.spec_from_file_location("reproduce", scripts.ROOT / "scripts" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options_of(*flags):
    return script().options_of(list(flags))


def reproduce(*flags):
    """reproduce.py's main with these flags, in this process."""
    module = script()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reproduce.py", *map(str, flags)])
        module.main()


@pytest.fixture
def dry_run(capsys):
    """Flags -> the command lines that are printed, as (script, parsed options), and the comments."""
    parse = {"train_student.py": student_options, "train_teacher.py": teacher_options}

    def run(*flags):
        reproduce(*flags, "--dry_run")
        lines = capsys.readouterr().out.splitlines()
        commands = [shlex.split(line)[1:] for line in lines if not line.startswith("#")]
        return ([(script, parse.get(script, list)(argv)) for script, *argv in commands],
                [line for line in lines if line.startswith("#")])

    return run


def flat(flags):
    return [x for kv in flags.items() for x in kv]


# --- what a table is made of ---


def test_a_shorter_schedule_moves_every_mark_in_proportion_halves_up():
    assert schedule(20, True, True) == ["--epochs", "20", "--lr_decay_epochs", "13,15,18", "--warm_up", "2",
                                        "--init_epochs", "3"]
    assert schedule(240, True, True) == []
    assert schedule(4, False, False) == ["--epochs", "4", "--lr_decay_epochs", "3,4"]
    assert schedule(1, True, True)[2:] == ["--lr_decay_epochs", "1", "--warm_up", "0", "--init_epochs", "1"]
    shorter = student_options(["--path_t", "t", *schedule(120, True, False)])
    usual = student_options(["--path_t", "t"])
    shorter, usual = learning_rates(shorter), learning_rates(usual)
    assert [shorter(e) for e in range(10, 121)] == [usual(2 * e) for e in range(10, 121)]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_table_that_its_name_comes_back_from(name):
    for spec in [name, f"{name}+IKD"]:
        given = weights(spec, "resnet56->resnet20")
        options = student_options(["--path_t", "t", *_flags(given)])
        assert label(vars(options)) == spec
        assert options.beta == given.get("beta", 0)
    said = preset(name, "resnet56->resnet20")[1]
    assert bool(said) != METHODS[name].beta_published or name in published.WEIGHTS["cifar100"]


def test_weights_are_those_of_the_pair():
    assert weights("dkd", "resnet56->resnet20") == {
        "distill": "dkd", "gamma": 1, "alpha": 1, "kd_T": 4, "beta": 2, "ramp": 20}
    assert "ramp" not in weights("dkd+IKD", "resnet56->resnet20")  # IKD's code has none
    assert weights("dkd", "resnet32x4->ShuffleV2")["beta"] == 8
    assert weights("wttm", "wrn_40_2->wrn_16_2") == {"distill": "wttm", "gamma": 1, "alpha": 0.1, "beta": 4}
    assert weights("ce", "a->b") == {"distill": "kd", "gamma": 1, "alpha": 0}
    assert weights("crd+KD", "a->b") == {"distill": "crd", "gamma": 1, "alpha": 1, "beta": 0.8}
    assert weights("kd+ls+IKD", "a->b") == {"distill": "kd", "gamma": 0.1, "alpha": 9, "kd_T": 2, "logit_std": "on",
                                            "avg": 6.5, "intra_T": 1}
    assert weights("reviewkd", "resnet56->resnet20")["beta"] == 0.6
    assert weights("catkd", "resnet32x4->ShuffleV2") == {"distill": "catkd", "gamma": 1, "cat_norm": "on",
                                                         "cat_size": "4", "beta": 600}
    assert weights("wkd-lf", "wrn_40_2->ShuffleV1") == {"distill": "wkd", "gamma": 1, "wkd": "lf", "alpha": 60,
                                                        "wkd_T": 4, "beta": 0.5}


@pytest.mark.parametrize("pair, kd, dkd, mlkd", [  # temperature and weights
    ("resnet32x4->resnet8x4", (2, 9), (2, 9, 72), (2, 9)), ("resnet56->resnet20", (2, 9), (3, 18, 36), None),
    ("wrn_40_2->wrn_16_2", (2, 9), (2, 12, 24), (2, 9)), ("vgg13->vgg8", (3, 9), (2, 15, 30), (2, 6)),
    ("resnet32x4->ShuffleV2", (2, 9), (2, 9, 72), (2, 6)), ("resnet110->resnet20", (4, 12), (2, 15, 30), (2, 9))])
def test_weights_with_standardised_logits_are_those_of_the_published_logs(pair, kd, dkd, mlkd):
    for method, values, keys in (("kd", kd, ("kd_T", "alpha")), ("dkd", dkd, ("kd_T", "alpha", "beta")),
                                 ("mlkd", mlkd, ("mlkd_T", "beta"))):
        found, said = preset(f"{method}+ls", pair)
        assert (values is None) == bool(said)
        assert tuple(found[key] for key in keys) == (values or (2, 9)) and found["logit_std"] == "on"
        assert found["gamma"] == (1 if method == "dkd" else 0.1) and found.get("ramp", 0) == 20 * (method == "dkd")


VARIANTS = [name for name, row in published.WEIGHTS["cifar100"].items() if "distill" in row]


@pytest.mark.parametrize("name", [*VARIANTS, "kd+view+IKD"])
def test_a_variant_of_a_method_is_a_row_of_its_own(name, dry_run, tmp_path):
    for pair in ("resnet32x4:resnet8x4", "resnet56:resnet20"):
        base = METHODS[weights(name, pair.replace(":", "->"))["distill"]].name
        flags = ("--pairs", pair, "--methods", f"{base},{name}", "--trials", "1", "--save_dir", str(tmp_path))
        plain, own = plan(options_of(*flags)).students
        assert (plain.method, own.method) == (base, name) and plain.folder != own.folder
        assert len(dry_run(*flags)[0]) == 3


@pytest.mark.parametrize("pair, flags, said", [
    ("resnet32x4->resnet8x4", "--distill dkd -b 8 --avg 6.5 --intra_T 1", []),
    ("resnet32x4->resnet8x4", "--distill kd -r 0.1 -a 0.9 --avg 6.5 --intra_T 1", ["IKD's avg 6.5 and intra_T 1 are"]),
    ("resnet32x4->resnet8x4", "--distill dkd -b 8 --avg 6.5 --intra_T 2", ["IKD's avg 6.5 and intra_T 2 are"]),
    ("resnet56->resnet20", "--distill dkd -b 2 --avg 6.5 --intra_T 1", ["IKD's avg 6.5 and intra_T 1 are"]),
    ("resnet56->resnet20", "--distill dkd -b 8 --ramp 20", ["not the preset: b 8 instead of 2"]),
    ("resnet56->resnet8", "--distill wttm", ["wttm's weights are published for other pairs"]),
    ("resnet56->resnet20", "--distill kdsvd", ["no weight of kdsvd is published"]),
    ("resnet56->resnet20", "--distill hint -a 1", ["the weight of the added KD is not published for this method"]),
    ("resnet56->resnet20", "--distill crd -a 1", []),
    ("resnet56->resnet20", "--distill kdsvd --dataset digits", [])])
def test_what_is_not_published_is_said(pair, flags, said):
    found = remarks(vars(student_options(["--path_t", "t", *flags.split()])), pair)
    assert len(found) == len(said) and all(text.startswith(part) for text, part in zip(found, said, strict=True))


def test_published_facts_hold_together():
    for pair, row in published.ACCURACY.items():
        assert set(pair.split("->")) <= set(model_dict) and {"teacher", "ce", "kd"} <= set(row)
        assert all(50 < top1 < 80 and source in published.SOURCES for top1, source in row.values())
        assert row["teacher"][0] == published.TEACHERS[pair.split("->")[0]]
        assert {published.SOURCES[source]["figure"] for _, source in row.values()} <= {"last", "best", "not stated"}
    for known in published.WEIGHTS.values():
        for row in known.values():
            networks = {network for pair in row.get("pairs", ()) for network in pair.split("->")}
            assert published.SOURCES[row["source"]]["what"]
            assert all(name in model_dict or name.startswith("torchvision:") for name in networks)
    for pair, row in published.LOGS.items():
        assert pair in published.ACCURACY and all(
            0 <= round(log["best"] - log["last"], 2) <= 0.92 for log in row.values())
    assert len(published.TEACHERS) == 6
    assert published.figure("cifar100", "resnet56->resnet20", "ctkd") == (71.19, "C", "best")
    assert published.figure("cifar100", "resnet32x4->ShuffleV2", "sdd-kd") == (76.665, "SC", "not stated")
    assert published.figure("digits", "resnet56->resnet20", "kd") is None
    assert published.figure("cifar100", "resnet56->resnet20", "kd") == (70.66, "R", "last")
    for table in published.TABLES.values():
        for pair in table["pairs"]:
            for spec in table["methods"]:
                assert weights(spec, pair)


def test_the_dry_run_prints_command_lines_that_are_taken(dry_run):
    commands, comments = dry_run(
        "--pairs", "resnet56:resnet20,vgg13:vgg8", "--methods", "ce,dkd,dkd+IKD", "--trials", "1,x", "--epochs", 20,
        "--save_dir", "out", "--flags", "--fast")
    assert commands[0] == ("scripts/fetch_pretrained_teachers.py", ["resnet56", "vgg13", "--save_dir", "out"])
    runs = [options for script, options in commands[1:]]
    assert {script for script, _ in commands[1:]} == {"train_student.py"} and len(runs) == 2 * 3 * 2
    assert {(o.epochs, *o.lr_decay_epochs, o.warm_up, o.fast, o.teacher_cache, o.cache_dir) for o in runs} == {
        (20, 13, 15, 18, 2, True, "auto", "out/teacher_cache")}
    assert [o.trial for o in runs] == ["1"] * 6 + ["x"] * 6
    assert {(o.path_t, o.model_s, o.beta) for o in runs if o.distill == "dkd"} == {
        ("out/models/resnet56_vanilla/ckpt_epoch_240.pth", "resnet20", 2),
        ("out/models/vgg13_vanilla/ckpt_epoch_240.pth", "vgg8", 6)}
    assert "no reproduction" in comments[0] and "20 epochs" in comments[0]
    assert "# IKD's avg 6.5 and intra_T 1 are not published for dkd on this pair" in comments
    assert not Path("out").exists()


def test_teachers_are_trained_first_where_that_is_asked_for(dry_run):
    commands, _ = dry_run("--pairs", "resnet14:resnet8,resnet20:resnet8", "--methods", "kd", "--trials", "1",
                          "--dataset", "digits", "--teachers", "train", "--epochs", 4, "--teacher_epochs", 8,
                          "--save_dir", "out", "--teacher_flags", "--batch_size 128")
    assert [script for script, _ in commands] == ["train_teacher.py"] * 2 + ["train_student.py"] * 2
    teacher, student = commands[0][1], commands[2][1]
    assert (teacher.model, teacher.epochs, teacher.lr_decay_epochs) == ("resnet14", 8, [5, 6, 7])
    assert (teacher.batch_size, student.batch_size) == (128, 64)
    assert student.path_t == "out/models/resnet14_digits_lr_0.05_decay_0.0005_trial_0/resnet14_last.pth"


@pytest.mark.parametrize("name", published.TABLES)
def test_a_published_table_has_all_its_runs(name, dry_run):
    named = published.TABLES[name]
    commands, _ = dry_run("--table", name, "--trials", 1)
    left_out = sum(len(methods) for methods in named.get("without", {}).values())
    grid = math.prod(map(len, named.get("grid", {}).values()))
    losses = sum(grid if "+IKD" in method else 1 for method in named["methods"])
    runs = [options for script, options in commands if script == "train_student.py"]
    # The labels alone: a run for each student.
    students = {pair.split("->")[1] for pair in named["pairs"]}
    shared = (len(named["pairs"]) - len(students)) * ("ce" in named["methods"])
    assert len(runs) == len(named["pairs"]) * losses - left_out - shared
    assert {options.epochs for options in runs} == {240}


GRID = ("--pairs", "resnet56:resnet20,resnet110:resnet20", "--trials", "1")


def test_a_grid_makes_a_row_of_each_combination_that_acts(dry_run):
    """A method takes the flags that it reads, and IKD's where IKD is; what a folder's name does not tell is apart."""
    commands, _ = dry_run("--pairs", "resnet56:resnet20", "--methods", "ce,kd,hint,kd+IKD", "--trials", "1,2",
                          "--grid", "avg=0.5,1 kd_T=2,4 learning_rate=0.1", "--save_dir", "out")
    found = [(label(vars(o)), o.avg, o.kd_T if o.distill == "kd" else None, o.save_dir)
             for script, o in commands if script == "train_student.py" and o.trial == "1"]
    apart, plain = "out/grid/kd_T:2,learning_rate:0.1", "out/grid/learning_rate:0.1"
    assert found == [("ce", 0, 4, plain), ("kd", 0, 2, apart), ("kd", 0, 4, plain), ("hint", 0, None, plain),
                     *(("kd+IKD", avg, T, place) for avg in (0.5, 1) for T, place in ((2, apart), (4, plain)))]
    assert {o.cache_dir for script, o in commands if script == "train_student.py"} == {"out/teacher_cache"}
    assert {o.learning_rate for script, o in commands if script == "train_student.py"} == {0.1}


def test_a_grid_takes_lists_bare_flags_and_short_names(dry_run):
    commands, _ = dry_run(*GRID, "--methods", "kd", "--grid", "lr_decay_epochs=150,180;100 compile=on,off -a=0.5,0.9")
    found = {(tuple(o.lr_decay_epochs), o.compile, o.alpha) for script, o in commands if script == "train_student.py"}
    assert found == set(itertools.product([(150, 180), (100,)], [True, False], [0.5, 0.9]))


def test_labels_alone_are_trained_once_for_a_student(tmp_path):
    table = plan(options_of(*GRID, "--methods", "ce,kd", "--save_dir", str(tmp_path)))
    assert [(job.method, job.pairs) for job in table.students] == [
        ("ce", ("resnet56->resnet20", "resnet110->resnet20")), ("kd", ("resnet56->resnet20",)),
        ("kd", ("resnet110->resnet20",))]
    runs = table.record()["runs"]
    assert [(run["pair"], run["method"]) for run in runs] == [
        (pair, method) for pair in ("resnet56->resnet20", "resnet110->resnet20") for method in ("ce", "kd")]
    assert runs[0]["folder"] == runs[2]["folder"] and table.students[0].title == "resnet20 ce trial 1"


def test_every_run_of_a_grid_has_a_place_and_a_name_of_its_own(tmp_path):
    table = plan(options_of(*GRID, "--methods", "kd,kd+IKD", "--grid", "kd_T=2,4 avg=1,2", "--save_dir", str(tmp_path)))
    assert len({job.folder for job in table.students}) == len({job.name for job in table.students}) == 2 * (2 + 4)
    assert table.students[2].title == "resnet56->resnet20 kd+IKD (kd_T 2, avg 1) trial 1"


def test_a_tables_script_takes_overrides():
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "EPOCHS": "24", "TRIALS": "1", "AVG": "2,3",
                   "SAVE_DIR": "elsewhere", "FLAGS": "--fast --seed 3", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(["sh", scripts.ROOT / "scripts" / "table_ikd.sh", "--dry_run"], env=environment,
                         capture_output=True, text=True, check=True)
    lines = [line for line in run.stdout.splitlines() if "train_student.py" in line]
    assert len(lines) == 1 + 2 * 3
    assert all("--epochs 24 --lr_decay_epochs 15,18,21 --warm_up 2" in line and line.endswith("--fast --seed 3")
               and "--save_dir elsewhere" in line for line in lines)
    assert {float(line.split("--avg ")[1].split()[0]) for line in lines[1:]} == {2, 3}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Checkpoints of untrained networks for the digits, as various scripts leave them."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, model, classes in (
            ("resnet14_digits_trial_0/resnet14_last.pth", "resnet14", 10), ("digits_resnet20.pth", "resnet20", 10),
            ("resnet8_a/resnet8_last.pth", "resnet8", 10), ("resnet8_b/resnet8_last.pth", "resnet8", 10),
            ("resnet32_vanilla/ckpt_epoch_240.pth", "resnet32", 100)):
        (folder / name).parent.mkdir(exist_ok=True)
        torch.save({"model": model_dict[model](num_classes=classes).state_dict()}, folder / name)
    return folder


def test_teachers_are_found_in_a_folder(teachers, dry_run):
    for model, file in (("resnet14", "resnet14_digits_trial_0/resnet14_last.pth"), ("resnet20", "digits_resnet20.pth")):
        ((_, options),), _ = dry_run(*flat(GOOD | {"--pairs": f"{model}:resnet8", "--teachers": teachers}))
        assert options.path_t == str(teachers / file)
    own = teachers / "resnet14_digits_trial_0" / "resnet14_last.pth"
    ((_, options),), _ = dry_run(*flat(GOOD), "--teachers", "train", f"resnet14={own}")
    assert options.path_t == str(own)


@pytest.mark.parametrize("flags, says", [
    ({"--pairs": "resnet14"}, "'resnet14' is not a pair such as resnet56:resnet20"),
    ({"--pairs": "resnet14:resnet9"}, "is not a pair"),
    ({"--methods": "kd,nothing"}, "'nothing' is not a method: give ce, kd+ls, dkd+ls, mlkd+ls, kd+view, "
                                   "kd+dot, sdd-kd, wkd-f, wkd-lf or one of abound"),
    ({"--pairs": "nowhere.pth:resnet8"}, "nowhere.pth"),
    ({"--methods": "dkd+IKD+KD"}, "is not a method"),
    ({"--methods": "dkd+KD"}, "'dkd+KD': KD can be added to abound, attention"),
    ({"--trials": "a/b"}, "cannot end a folder's name"),
    ({"--grid": "kd_T"}, "'kd_T' is not a grid such as"),
    ({"--grid": "kd_T=2 kd_T=3"}, "is not a grid such as"),
    ({"--grid": "kd_T=-1"}, "'-1' is not a number above 0"),
    ({"--grid": "epochs=1,2"}, "epochs is set by the table: use --epochs"),
    ({"--grid": "nothing=1"}, "--nothing"),
    ({"--grid": "avg=1,2"}, "--grid: no method of this table reads avg"),
    ({"--grid": "seed=1,2", "--flags": "--seed 3"}, "--flags and --grid both set seed"),
    ({"--epochs": "0"}, "'0' is not an integer of 1 or more"),
    ({"--flags": "--trial 4"}, "--flags cannot hold --trial, which the table sets: use --trials"),
    ({"--flags": "-a0.5"}, "--flags cannot hold -a, which the table sets: use --methods and --grid"),
    ({"--flags": "--epoch 4"}, "did you mean --epochs"),
    ({"--teachers": "fetch"}, "no teacher resnet14 is published"),
    ({"--teachers": "fetch", "--pairs": "resnet56:resnet8"}, "the published teachers are of cifar100"),
    ({"--teachers": "nowhere.pth"}, "nowhere.pth does not exist"),
    ({"--teachers": "{teachers}", "--pairs": "resnet8:resnet8"}, "holds several checkpoints of resnet8: give"),
    ({"--teachers": "{teachers}", "--pairs": "resnet56:resnet8"}, "holds no checkpoint of resnet56"),
    ({"--teachers": "{teachers}/digits_resnet20.pth"}, "is a resnet20, not a resnet14"),
    ({"--teachers": "{teachers}", "--pairs": "resnet32:resnet8"}, "is a teacher of 100 classes, digits has 10"),
    ({"--teachers": "resnet20=x.pth"}, "--teachers says nothing of resnet14"),
    ({"--time": "soon"}, "'soon' is not a time such as"),
    ({"--methods": None}, "say which table: --table same|different|ikd|methods, or --pairs and --methods"),
    ({"--nothing": "1"}, "unrecognized arguments: --nothing")])
def test_bad_input_is_refused_before_any_work(flags, says, teachers, tmp_path, capsys):
    flags = {key: value.format(teachers=teachers) if value else value for key, value in flags.items()}
    given = {"--teachers": "train"} | GOOD | {"--save_dir": str(tmp_path / "save")} | flags
    with pytest.raises(ValueError, match=re.escape(says)):  # what guarded makes one line and exit code 2 of
        reproduce(*flat({key: value for key, value in given.items() if value}))
    assert capsys.readouterr().out == "" and not (tmp_path / "save").exists()


# --- how runs are run: with runs that take no time, of the files that train_student.py leaves ---

RUN = """
import json, os, signal, sys, time
folder, plan = sys.argv[1], json.loads(sys.argv[2])
os.makedirs(folder, exist_ok=True)
import fcntl
lock = open(os.path.join(folder, ".lock"), "a+")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
log = os.path.join(folder, "log.jsonl")
done = len(open(log).readlines()) if os.path.exists(log) else 0
print("threads", os.environ.get("OMP_NUM_THREADS"), "gpu", os.environ.get("CUDA_VISIBLE_DEVICES"), "after", done)
if os.path.exists(plan.get("fails_with", "")):
    sys.exit("error: " + open(plan["fails_with"]).read())
for epoch in range(done + 1, plan["epochs"] + 1):
    time.sleep(plan["seconds"])
    with open(log, "a") as file:
        print(json.dumps({"phase": "train", "epoch": epoch, "test_top1": 50.0 + epoch}), file=file)
    if stop:
        sys.exit(143)
accuracies = {"epoch": plan["epochs"], "top5": 9.0}
result = {"last": accuracies | {"top1": 1.0}, "best": accuracies | {"top1": 2.0}, "seconds": 3.0, "teacher_top1": 1.0}
with open(os.path.join(folder, "result.json"), "w") as file:
    json.dump(result, file)
"""


RUNNER = """
import sys
sys.path.insert(0, {root!r})
from helper.util.errors import guarded
from scripts.tables.runner import Display, Job, Local, Logs, Stop, run_jobs
jobs = [Job(*job, settings={{}}, pairs=("a->b",), method="kd", trial=str(i)) for i, job in enumerate({jobs!r})]
logs = Logs({save!r})
logs.folder.mkdir(exist_ok=True)
guarded(lambda: run_jobs(jobs, Local([{{}}] * 2, logs), logs, Stop(), Display(jobs)))
"""


@pytest.fixture
def small(tmp_path):
    """(name, epochs=2, seconds=0.02, ...) -> a job of a run that takes no time."""
    (tmp_path / "run.py").write_text(RUN)

    def job(name, needs=None, **plan):
        plan = {"epochs": 2, "seconds": 0.02} | plan
        folder = str(tmp_path / "runs" / name)
        return Job(name, folder, (str(tmp_path / "run.py"), folder, json.dumps(plan)), plan["epochs"], {"model": name},
                   needs=needs, pairs=() if needs is None and name == "teacher" else ("a->b",), method=name, trial="1")

    return job


@pytest.fixture
def stop():
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    yield Stop()
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def run_all(jobs, tmp_path, stop, count=2):
    logs = Logs(str(tmp_path))
    logs.folder.mkdir(exist_ok=True)
    return run_jobs(jobs, Local([{}] * count, logs), logs, stop, Display(jobs))


def test_all_runs_are_run_teachers_first_and_no_more_at_a_time_than_asked(small, tmp_path, stop, capsys):
    jobs = [small("teacher", epochs=3), *(small(f"s{i}", needs="teacher") for i in range(4))]
    assert run_all(jobs, tmp_path, stop) == {}
    assert all(job.done for job in jobs)
    started = [json.loads(line) for line in (tmp_path / "runs" / "s0" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in started] == [1, 2]
    times = {job.name: os.path.getmtime(os.path.join(job.folder, "result.json")) for job in jobs}
    begun = min(os.stat(tmp_path / "logs" / f"s{i}.log").st_ctime for i in range(4))
    assert times["teacher"] <= begun
    assert max(times.values()) == max(times["s2"], times["s3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0] == "1/5  teacher teacher: last 1.00, best 2.00; 0:00:03"


def test_a_failed_run_stops_no_other_and_is_tried_again(small, tmp_path, stop, capsys):
    cause = tmp_path / "cause"
    cause.write_text("the loss is not finite")
    jobs = [small("teacher"), small("bad", fails_with=str(cause)), small("good"),
            small("orphan", needs="lost"), small("lost", fails_with=str(cause))]
    failed = run_all(jobs, tmp_path, stop)
    assert failed == {"bad": "the loss is not finite", "lost": "the loss is not finite", "orphan": "its teacher failed"}
    assert [job.name for job in jobs if job.done] == ["teacher", "good"]
    assert "failed  a->b bad trial 1: the loss is not finite" in capsys.readouterr().out
    logs = Logs(str(tmp_path))
    assert {job.name: why for job in jobs if (why := logs.failed(job.name))} == failed
    cause.unlink()
    assert run_all(jobs, tmp_path, stop) == {} and all(job.done for job in jobs)
    assert not any(Logs(str(tmp_path)).failed(job.name) for job in jobs)
    assert (tmp_path / "logs" / "good.log").read_text().count("$ python") == 1
    assert (tmp_path / "logs" / "bad.log").read_text().count("$ python") == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_stopped_in_any_way_no_run_is_left_and_all_continue(small, name, tmp_path, stop):
    """The process that runs them is another: it is sent the signal, and its runs must end too, having saved."""
    jobs = [small(f"s{i}", epochs=40, seconds=0.03) for i in range(3)]
    plain = [(job.name, job.folder, job.argv, job.epochs) for job in jobs]
    (tmp_path / "runner.py").write_text(RUNNER.format(root=str(scripts.ROOT), save=str(tmp_path), jobs=plain))
    runner = scripts.Process(str(tmp_path / "runner.py"))
    wait_for(lambda: all(progress_of(job)[0] >= 2 for job in jobs[:2]))
    runner.signal(getattr(signal, name))
    code = runner.wait()
    assert code == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9}[name]
    wait_for(lambda: not any(held(job.folder) for job in jobs))
    before = [progress_of(job)[0] for job in jobs]
    assert before[0] < 40 and before[1] < 40 and before[2] == 0
    if name != "SIGKILL":
        assert "2 running runs have been stopped" in runner.stdout
        assert runner.stderr == f"error: stopped by {name}; the same command continues from the last finished epoch\n"
    # Go on with them, quicker.
    quick = [Job(j.name, j.folder, (*j.argv[:2], json.dumps({"epochs": 40, "seconds": 0})), 40, {}, pairs=("a->b",))
             for j in jobs]
    assert run_all(quick, tmp_path, stop) == {}
    assert all(progress_of(job)[0] == 40 for job in jobs)  # no epoch was trained twice
    assert f"after {before[0]}" in (tmp_path / "logs" / "s0.log").read_text()


def wait_for(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_another_process_holds_is_waited_for(small, tmp_path, stop):
    job = small("s", epochs=8, seconds=0.05)
    other = subprocess.Popen([sys.executable, *job.argv], stdout=subprocess.DEVNULL)
    wait_for(lambda: held(job.folder))
    assert run_all([job], tmp_path, stop) == {}
    assert other.wait() == 0 and not (tmp_path / "logs" / "s.log").exists()


def test_interrupted_before_anything_began(small, tmp_path, stop):
    stop.signum = signal.SIGTERM
    with pytest.raises(Interrupted):
        run_all([small("s")], tmp_path, stop)


@pytest.mark.parametrize("per_device, jobs, gpus, threads, found", [
    (2, 9, ["0", "3"], "5", [{"CUDA_VISIBLE_DEVICES": gpu, "RUNS_PER_GPU": "2"} for gpu in ("0", "3", "0", "3")]),
    (None, 9, ["1"], "5", [{"CUDA_VISIBLE_DEVICES": "1", "RUNS_PER_GPU": "1"}]),
    (3, 2, [], "5", [{}, {}]), (3, 0, [], "5", [{}]),
    (1, 9, [], None, [{"OMP_NUM_THREADS": "8"}]), (3, 9, [], None, [{"OMP_NUM_THREADS": "2"}] * 3),
    (None, 9, [], None, [{"OMP_NUM_THREADS": "1"}] * 8)])
def test_each_run_has_its_share_of_the_machine(per_device, jobs, gpus, threads, found, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:  # what the user has set stays
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert slots(per_device, [None] * jobs, gpus) == found


@pytest.mark.parametrize("damage", ["", "{}", "[]", "{", '{"last": {"top1": 1}}'])
def test_a_damaged_result_is_no_result(small, damage):
    job = small("s")
    os.makedirs(job.folder)
    Path(job.folder, "result.json").write_text(damage)
    assert not job.done


def test_a_run_with_a_damaged_result_is_tried_and_fails_with_the_reason(teachers, tmp_path):
    """Not counted as done, and not overwritten: train_student.py says what is damaged."""
    flags = (*flat(GOOD | {"--teachers": str(teachers)}), "--save_dir", str(tmp_path))
    (job,) = plan(options_of(*flags)).students
    os.makedirs(job.folder)
    result = Path(job.folder, "result.json")
    result.write_text("{")
    process = scripts.run("scripts/reproduce.py", *flags)
    assert process.returncode == 1 and "0 done before" in process.stdout
    assert f"{result} is damaged" in process.stdout and result.read_text() == "{"
    assert "failed: " in (tmp_path / "report" / "report.md").read_text()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("live", [True, False])
def test_the_display_shows_how_far_all_runs_are(live, small, tmp_path, stop, monkeypatch):
    out = Terminal() if live else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(Display, "PAUSE", 0)
    monkeypatch.setattr("helper.util.progress.PAUSE", 0.01)
    jobs = [small("teacher"), *(small(f"s{i}", needs="teacher", seconds=0.2) for i in range(2))]
    assert run_all(jobs, tmp_path, stop) == {}
    text = out.getvalue()
    assert re.search(r"epochs: .*[2-5]/6.*1 done, 2 running" if live else
                     r"epochs: \d+%, [23] of 6.* left, 1 done, 2 running, 0 left; a->b s0 trial 1: running, ep", text)
    assert re.search("(?m)^.*3/3  a->b s[01] trial 1: last 1.00, best 2.00", text)


# --- the whole, once ---


def test_a_table_of_the_digits_from_one_command(teachers, tmp_path):
    flags = (*flat(GOOD | {"--teachers": teachers}), "--epochs", 1, "--flags", "--batch_size 256",
             "--save_dir", tmp_path)
    run = scripts.succeed("scripts/reproduce.py", *flags)
    assert "1 runs: 0 teachers, 1 students; 0 done before" in run.stdout and "1 of 1 runs are done" in run.stdout
    assert "train 1/1" not in run.stdout  # it is in the log
    assert "train 1/1" in scripts.only(tmp_path / "logs", "*.log").read_text()
    (record,), faults = read_records(tmp_path)
    assert faults == [] and (record.pair, record.method, record.trial) == ("resnet14->resnet8", "kd", "1")
    assert record.settings["cache_dir"] == str(tmp_path / "teacher_cache")
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"| kd | 1 | {record.result['last']['top1']:.2f} |" in text and "no reproduction" in text
    assert list((tmp_path / "student_tensorboards" / scalars_folder(record.name, record.settings)).glob("*.hparams"))
    again = scripts.succeed("scripts/reproduce.py", *flags)
    assert "1 done before" in again.stdout and "at a time" not in again.stdout
    other = scripts.run("scripts/reproduce.py", *flags, "--epochs", 2)
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert "holds a run with other settings (--epochs 1 there, 2 now" in other.stderr
