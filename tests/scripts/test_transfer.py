"""scripts/transfer.py: the features are the network's, the layer is the best one, and the result is said once."""
import json
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dataset
from helper.util.errors import RunError, UsageError
from models import load_model
from scripts import transfer
from scripts.analysis.checkpoint import load
from tests.support import images, scripts

CPU = torch.device("cpu")


def options(**changes):
    return Namespace(**{"epochs": 200, "weight_decay": 1e-3, "batch_size": 100, "image_size": 32} | changes)


@pytest.fixture(scope="module")
def problem():
    """Vectors (300, 5) of three overlapping classes, each width on a scale of its own, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.randn(3, 5, generator=generator)
    noise = torch.randn(300, 5, generator=generator)
    return (centres[labels] + noise) * torch.tensor([1, 10, 0.1, 3, 1.0]) + 4, labels


def test_lbfgs_finds_the_minimum_that_scikit_learn_finds(problem):
    from sklearn.linear_model import LogisticRegression
    vectors, labels = problem
    standard = (vectors - vectors.mean(0)) / vectors.std(0)
    theirs = LogisticRegression(C=1 / (1e-3 * len(labels)), tol=1e-10, max_iter=1000).fit(standard, labels)
    layer = transfer.fit(vectors, labels, 3, options())
    probabilities = layer(vectors).softmax(1).detach().numpy()
    assert np.allclose(probabilities, theirs.predict_proba(standard), atol=1e-3)
    found = transfer.measured(layer, vectors, labels)
    assert found["top1"] == pytest.approx(100 * theirs.score(standard, labels)) and found["top5"] == 100


def test_a_layer_that_diverges_is_an_error_with_the_cure(problem):
    with pytest.raises(RunError, match="not finite: give another --weight_decay, or take another checkpoint"):
        transfer.fit(*problem, 3, options(weight_decay=1e38))


def test_the_features_are_the_networks_for_its_own_normalisation_and_size(digits_teacher, tmp_path):
    loaded = load(str(digits_teacher), CPU)
    assert transfer.normalisation(loaded) == (dataset.digits.MEAN, dataset.digits.STD)
    data = dataset.load("folder", str(images.class_folders(tmp_path)), image_size=48)
    vectors, labels = transfer.features(loaded, data.test, data, options(), CPU)
    (normalised, expected_labels), *_ = data.test_images(CPU).batches(100)
    pixels = normalised * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
    small = F.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (dataset.digits.MEAN, dataset.digits.STD))
    with torch.no_grad():
        expected = load_model(digits_teacher)[0]((small - mean) / std, named=True).pooled
    assert torch.allclose(vectors, expected, atol=1e-4) and torch.equal(labels, expected_labels)


def test_a_networks_features_classify_the_data_it_was_trained_on(digits_teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["transfer.py", str(digits_teacher), "--dataset", "digits"])
    transfer.main()
    said = capsys.readouterr()
    assert said.out.count("\n") == 1 and said.out.startswith(f"{digits_teacher} on digits: top-1 ")
    assert "resnet14, 64 features at 32×32" in said.out and "355 test images" in said.err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--epochs", "20", "--json", str(tmp_path / "probe.json")])
    transfer.main()
    found = json.loads((tmp_path / "probe.json").read_text())
    assert not capsys.readouterr().out
    assert (found["classes"], found["width"], found["train_images"], found["test_images"]) == (10, 64, 1442, 355)
    assert found["train"]["top1"] > 95 and found["test"]["top1"] > 90 and found["epochs"] == 20


@pytest.mark.parametrize("flags, says", [
    (["x.pth"], "--dataset is missing: give the data set to transfer to"),
    (["x.pth", "--dataset", "digits", "--json", "no/such/folder/x.json"], "name a file in a folder that exists"),
])
def test_bad_input_is_refused_before_anything_is_read(flags, says):
    with pytest.raises(UsageError, match=says):
        transfer.options_of(flags)


def test_a_network_without_a_pooled_vector_is_refused(tmp_path):
    torch.manual_seed(0)
    from models import build
    name = "torchvision:squeezenet1_1"
    torch.save({"model": build(name, 3).state_dict(), "model_name": name, "num_classes": 3}, tmp_path / "x.pth")
    data = dataset.load("folder", str(images.class_folders(tmp_path / "data")), image_size=32)
    with pytest.raises(UsageError, match="squeezenet1_1 has no vector that a linear classifier reads"):
        transfer.features(load(str(tmp_path / "x.pth"), CPU), data.test, data, options(), CPU)


def test_images_that_fit_in_no_memory_are_one_line(digits_teacher):
    process = scripts.run("scripts/transfer.py", digits_teacher, "--dataset", "digits", "--image_size", 300000)
    assert process.returncode == 1 and not process.stdout
    assert process.stderr.splitlines()[1:] == [
        "error: there is not enough memory: give a smaller --batch_size or --image_size"]
