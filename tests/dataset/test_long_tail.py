"""Long tails and label noise: how many, which, how often; accuracy by class and by shots; what a run records."""
import json
from argparse import Namespace

import pytest
import torch

import dataset
from dataset.long_tail import add_label_noise, make_long_tailed, profile
from helper.evaluation import class_accuracies, evaluate, shots
from helper.record.naming import student_folder, teacher_folder
from models import model_dict
from tests.support import scripts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return dataset.load("digits", "")


@pytest.mark.parametrize("classes, most, imbalance, total", [
    # What the literature calls CIFAR-100-LT and CIFAR-10-LT with ratios 100, 50 and 10.
    (100, 500, 0.01, 10847), (100, 500, 0.02, 12608), (100, 500, 0.1, 19573), (10, 5000, 0.01, 12406)])
def test_the_profile_is_the_published_one(classes, most, imbalance, total):
    kept = profile(torch.full((classes,), most), imbalance)
    assert kept.sum() == total and kept[0] == most and kept[-1] == most * imbalance
    assert torch.equal(kept, kept.sort(descending=True).values)


def test_a_class_keeps_one_image_at_least_and_no_more_than_it_has():
    assert profile(torch.tensor([10, 3, 10, 10]), 0.01).tolist() == [10, 2, 1, 1]
    assert profile(torch.tensor([10, 3, 10, 10]), 0.9).tolist() == [10, 3, 9, 9]


def images_of(data):
    pairs = zip(data.train.images, data.train.labels.tolist(), strict=True)
    return {image.numpy().tobytes(): label for image, label in pairs}


def test_a_tail_is_a_subset_fixed_by_the_data_seed_and_the_test_set_is_whole(digits):
    tail = make_long_tailed(digits, 0.1, 0)
    kept = profile(torch.bincount(digits.train.labels), 0.1)
    assert torch.equal(torch.bincount(tail.train.labels), kept) and torch.equal(tail.shots, kept)
    assert images_of(tail).items() <= images_of(digits).items()
    assert tail.test is digits.test
    assert torch.equal(make_long_tailed(digits, 0.1, 0).train.images, tail.train.images)
    assert images_of(make_long_tailed(digits, 0.05, 0)).keys() <= images_of(tail).keys()
    other = make_long_tailed(digits, 0.1, 1)
    assert len(other.train) == len(tail.train) and images_of(other).keys() != images_of(tail).keys()
    assert f"imbalance 0.1: {len(tail.train)} of the 1,442 training images, 143 to 14 a class" in tail.note


def test_label_noise_is_exact_in_number_never_the_true_class_and_uniform_over_the_others(digits):
    noisy = add_label_noise(digits, 0.4, 0)
    changed = noisy.train.labels != digits.train.labels
    assert changed.sum() == round(0.4 * 1442)
    shift = (noisy.train.labels - digits.train.labels)[changed] % 10
    counts = torch.bincount(shift, minlength=10)[1:]
    expected = changed.sum() / 9
    # The chi-squared of 8 degrees of freedom exceeds 31.8 once in 10,000.
    assert ((counts - expected) ** 2 / expected).sum() < 31.8
    assert noisy.test is digits.test and noisy.train.images is digits.train.images
    assert torch.equal(add_label_noise(digits, 0.4, 0).train.labels, noisy.train.labels)
    assert not torch.equal(add_label_noise(digits, 0.4, 1).train.labels, noisy.train.labels)


def test_accuracies_of_classes_agree_with_the_whole_and_with_each_class_alone(digits):
    torch.manual_seed(0)
    network = model_dict["resnet8"](num_classes=10).train()
    test = digits.test_images(CPU)
    top1 = class_accuracies(network, test, 10, batch_size=100)
    assert network.training
    counts = torch.bincount(test.labels, minlength=10)
    assert (top1 * counts).sum().item() / len(test) == pytest.approx(evaluate(network, test).top1)
    ((images, labels),) = test.batches(len(test))
    with torch.no_grad():
        hit = network.eval()(images).argmax(1) == labels
    assert top1.tolist() == pytest.approx([100 * hit[labels == c].float().mean().item() for c in range(10)])
    assert top1.max() > top1.min()


def test_many_medium_and_few_are_more_than_100_from_20_and_fewer_than_20_images():
    top1, images = torch.tensor([90.0, 70.0, 60.0, 50.0, 10.0, 0.0]), torch.tensor([500, 101, 100, 20, 19, 1])
    assert shots(top1, images) == {"many": {"classes": 2, "top1": 80.0}, "medium": {"classes": 2, "top1": 55.0},
                                   "few": {"classes": 2, "top1": 5.0}}
    assert list(shots(top1[:1], images[:1])) == ["many"]


def test_the_flags_are_in_the_folders_names_and_only_when_given():
    student = Namespace(dataset="cifar100", model_s="resnet8", distill="kd", gamma=1, alpha=0, beta=0, intra_T=2, avg=0,
                        trial="1")
    teacher = Namespace(dataset="cifar100", model="resnet8", learning_rate=0.05, weight_decay=5e-4, trial="0")
    for flags, shown in [((1.0, 0.0, 0), "cifar100"), ((0.01, 0.0, 0), "cifar100-imb0.01"),
                         ((0.01, 0.2, 3), "cifar100-imb0.01-noise0.2-dseed3"), ((1.0, 0.2, 0), "cifar100-noise0.2")]:
        for o in (student, teacher):
            o.imbalance, o.label_noise, o.data_seed = flags
        assert student_folder(student, "T") == f"S:resnet8_T:T_{shown}_kd_r:1_a:0_b:0_intrat:2_avg:0_1"
        assert teacher_folder(teacher) == f"resnet8_{shown}_lr_0.05_decay_0.0005_trial_0"


def test_a_run_with_a_tail_and_noise_records_each_class(digits, tmp_path):
    flags = ("--dataset", "digits", "--epochs", 1, "--batch_size", 256, "--save_dir", tmp_path, "--imbalance", 0.05,
             "--label_noise", 0.2)
    first = scripts.succeed("train_teacher.py", "--model", "resnet8", *flags)
    assert "training labels are wrong" in first.stdout and "-shot test accuracy: " in first.stdout
    folder = tmp_path / "models/resnet8_digits-imb0.05-noise0.2_lr_0.05_decay_0.0005_trial_0"
    scripts.succeed("train_student.py", "--path_t", folder / "resnet8_last.pth", *flags)
    for place in (folder, scripts.only(tmp_path / "student_model", "*_digits-imb0.05-noise0.2_*")):
        result = json.loads((place / "result.json").read_text())
        kept = profile(torch.bincount(digits.train.labels), 0.05)
        assert [row["train_images"] for row in result["by_class"]] == kept.tolist()
        assert [row["class"] for row in result["by_class"]] == list("0123456789")
        top1 = torch.tensor([row["top1"] for row in result["by_class"]], dtype=torch.float64)
        right = (top1 * torch.bincount(digits.test.labels)).sum().item()
        assert right / 355 == pytest.approx(result["last"]["top1"]) and result["shots"] == shots(top1, kept)


def test_the_finding_about_class_means_shows_both_formulas(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "resnet8_t").mkdir()
    torch.save(model_dict["resnet8"](num_classes=10).state_dict(), tmp_path / "resnet8_t/teacher.pth")
    out = scripts.succeed("scripts/experiments/class_means_finding.py", "--path_t", tmp_path / "resnet8_t/teacher.pth",
                          "--dataset", "digits", "--imbalance", 0.05, "--epochs", 1).stdout
    assert "all (10)" in out and "few (4)" in out and out.count("epoch 1  KD") == 3
    assert "without class 9, right: 0 of the other 9 means are not finite" in out
    assert "without class 9, published: 9 of the other 9 means are not finite" in out
