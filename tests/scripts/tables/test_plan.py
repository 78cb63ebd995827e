"""What a table is made of: its command lines, its grid and its teachers."""
import itertools
import math
from pathlib import Path

import pytest

from distiller_zoo import METHODS
from helper.cli import student_options
from helper.record import published
from helper.record.records import label
from helper.schedule import schedule as learning_rates
from scripts.tables.plan import as_flags, plan, schedule
from scripts.tables.presets import preset, weights
from tests.support.tables import GOOD, flat, options_of

# --- what a table is made of ---


def test_a_shorter_schedule_moves_every_mark_in_proportion_halves_up():
    assert schedule(20, True, True) == {"epochs": 20, "lr_decay_epochs": "13,15,18", "warm_up": 2, "init_epochs": 3}
    assert schedule(240, True, True) == {}
    assert schedule(4, False, False) == {"epochs": 4, "lr_decay_epochs": "3,4"}
    assert schedule(1, True, True) == {"epochs": 1, "lr_decay_epochs": "1", "warm_up": 0, "init_epochs": 1}
    shorter = student_options(["--path_t", "t", *as_flags(schedule(120, True, False))])
    usual = student_options(["--path_t", "t"])
    shorter, usual = learning_rates(shorter), learning_rates(usual)
    assert [shorter(e) for e in range(10, 121)] == [usual(2 * e) for e in range(10, 121)]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_table_that_its_name_comes_back_from(name):
    for spec in [name, f"{name}+IKD"]:
        given = weights(spec, "resnet56->resnet20")
        options = student_options(["--path_t", "t", *as_flags(given)])
        assert label(vars(options)) == spec
        assert options.beta == given.get("beta", 0)
    said = preset(name, "resnet56->resnet20")[1]
    assert bool(said) != METHODS[name].beta_published or name in published.WEIGHTS["cifar100"]


VARIANTS = [name for name, row in published.WEIGHTS["cifar100"].items() if "distill" in row]


@pytest.mark.parametrize("name", [*VARIANTS, "kd+view+IKD"])
def test_a_variant_of_a_method_is_a_row_of_its_own(name, dry_run, tmp_path):
    for pair in ("resnet32x4:resnet8x4", "resnet56:resnet20"):
        base = METHODS[weights(name, pair.replace(":", "->"))["distill"]].name
        flags = ("--pairs", pair, "--methods", f"{base},{name}", "--trials", "1", "--save_dir", str(tmp_path))
        plain, own = plan(options_of(*flags)).students
        assert (plain.method, own.method) == (base, name) and plain.folder != own.folder
        assert len(dry_run(*flags)[0]) == 3


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


def test_command_lines_are_those_of_the_folder_in_which_they_are_asked_for(dry_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands, _ = dry_run("--pairs", "resnet56:resnet20", "--methods", "kd", "--trials", 1)
    assert len(commands) == 2 and all(Path(script).exists() for script, _ in commands)


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


def test_a_grid_may_set_the_marks_of_a_shorter_schedule(dry_run):
    commands, _ = dry_run("--pairs", "resnet56:resnet20", "--methods", "kd,fsp", "--trials", "1", "--epochs", 24,
                          "--grid", "warm_up=0,5 lr_decay_epochs=7,9;8 init_epochs=1,2")
    runs = [(o.distill, o.epochs, o.warm_up, *o.lr_decay_epochs) for _, o in commands[1:]]
    assert {o.init_epochs for _, o in commands[1:] if o.distill == "fsp"} == {1, 2}
    assert set(runs) == {(method, 24, *marks) for method in ("kd", "fsp") for marks in (
        (0, 7, 9), (0, 8), (5, 7, 9), (5, 8))}


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


def test_teachers_are_found_in_a_folder(teachers, dry_run):
    for model, file in (("resnet14", "resnet14_digits_trial_0/resnet14_last.pth"), ("resnet20", "digits_resnet20.pth")):
        ((_, options),), _ = dry_run(*flat(GOOD | {"--pairs": f"{model}:resnet8", "--teachers": teachers}))
        assert options.path_t == str(teachers / file)
    own = teachers / "resnet14_digits_trial_0" / "resnet14_last.pth"
    ((_, options),), _ = dry_run(*flat(GOOD), "--teachers", "train", f"resnet14={own}")
    assert options.path_t == str(own)
