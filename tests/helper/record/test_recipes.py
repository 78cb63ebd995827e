"""The presets of published settings, and the flags that win over them."""
import pytest
import torch

from helper.cli import student_options, teacher_options
from helper.record import published, recipes
from models import build

IMAGENET = ["--recipe", "imagenet", "--path_t", "torchvision:resnet34", "--model_s", "torchvision:resnet18"]


def test_the_imagenet_recipe_is_the_published_one():
    for o in (teacher_options(["--recipe", "imagenet"]), student_options(IMAGENET)):
        assert (o.epochs, o.batch_size, o.learning_rate, o.weight_decay, o.momentum) == (100, 256, 0.1, 1e-4, 0.9)
        assert (o.lr_decay_epochs, o.lr_decay_rate, o.warm_up) == ([30, 60, 90], 0.1, 0)


def test_the_tinyimagenet_recipe_is_the_published_one():
    o = teacher_options(["--recipe", "tinyimagenet"])
    assert (o.epochs, o.batch_size, o.learning_rate, o.weight_decay) == (200, 256, 0.2, 5e-4)
    assert (o.lr_decay_epochs, o.lr_decay_rate, o.warm_up) == ([60, 120, 160], 0.1, 0)


def test_the_cifar100_recipe_is_what_the_scripts_do_anyway():
    for parse, network in ((student_options, ["--path_t", "t", "--model_s", "ShuffleV2"]), (teacher_options, [])):
        plain, preset = vars(parse(network)), vars(parse([*network, "--recipe", "cifar100"]))
        differ = {key for key in plain if plain[key] != preset[key]}
        # Of kd, r: the script's default leaves the cross-entropy its full weight.
        assert differ == ({"recipe", "gamma"} if parse is student_options else {"recipe"})


@pytest.mark.parametrize("teacher, student, beta", [("torchvision:resnet34", "torchvision:resnet18", 0.5),
                                                    ("torchvision:resnet50", "MobileNetV1", 2.0)])
def test_the_weights_of_the_imagenet_pairs(teacher, student, beta):
    pair = ["--recipe", "imagenet", "--path_t", teacher, "--model_s", student]
    o = student_options([*pair, "--distill", "dkd"])
    assert (o.gamma, o.alpha, o.beta, o.kd_T) == (1.0, 1.0, beta, 1.0)
    o = student_options([*pair, "--distill", "kd"])
    assert (o.gamma, o.alpha, o.beta, o.kd_T) == (0.5, 0.5, 0.0, 1.0)
    assert recipes.note(o) is None


def test_given_flags_win():
    o = student_options([*IMAGENET, "--distill", "dkd", "-b", "3", "--epochs", "7", "--lr_decay_epochs", "5"])
    assert (o.beta, o.epochs, o.lr_decay_epochs, o.batch_size, o.kd_T) == (3.0, 7, [5], 256, 1.0)


def test_the_pair_is_read_from_the_teachers_file(tmp_path):
    torch.save({"model": build("vgg13", 10).state_dict()}, tmp_path / "vgg13.pth")
    command = ["--recipe", "cifar100", "--path_t", str(tmp_path / "vgg13.pth"), "--distill", "dkd", "--model_s"]
    assert student_options([*command, "vgg8"]).beta == 6.0
    other = student_options([*command, "resnet8"])
    assert other.beta == 8.0 and "no published weights for dkd" in recipes.note(other)


def test_what_is_not_published_is_left_and_said():
    o = student_options([*IMAGENET, "--distill", "pkt"])
    assert o.beta == 30000 and "recipe imagenet has no published weights for pkt" in recipes.note(o)
    assert recipes.note(student_options(["--path_t", "t", "--distill", "pkt"])) is None


def test_every_value_has_a_source_and_is_an_option():
    options = vars(teacher_options([]))
    for settings in recipes.SCHEDULES.values():
        assert settings["source"] in published.SOURCES and set(settings) - {"source"} <= set(options)
    for recipe, known in published.WEIGHTS.items():
        for name, row in known.items():
            read = vars(student_options(["--path_t", "t", "--distill", row.get("distill", name)]))
            assert row["source"] in published.SOURCES
            for pair in row.get("pairs", {"any->any": {}}):
                values = published.weights(recipe, name, pair)
                assert values.keys() <= read.keys()
                teacher, student = pair.split("->")
                if ":" in teacher:
                    assert recipes.weights(recipe, name, teacher, student) == values


def test_weights_of_a_row_with_pairs_hold_for_these_alone():
    assert published.weights("cifar100", "dkd", "resnet56->resnet20")["beta"] == 2.0
    assert published.weights("cifar100", "dkd", "resnet8->resnet20") is None
    assert published.weights("cifar100", "kd", None) == {"gamma": 0.1, "alpha": 0.9, "kd_T": 4.0}
    assert published.weights("cifar100", "hint", None) is None


def test_whole_numbers_of_a_recipe_are_read_as_the_flags_type(tmp_path):
    o = student_options(["--recipe", "cifar100", "--path_t", str(tmp_path / "resnet32x4_vanilla" / "t.pth"),
                         "--model_s", "ShuffleV1", "--distill", "catkd"])
    assert (o.cat_size, o.cat_norm, o.beta) == (4, "on", 600.0) and isinstance(o.cat_size, int)
