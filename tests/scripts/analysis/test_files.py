"""evaluate.py, export.py and analyze.py on checkpoints of data sets in image files, and of every kind of network."""
import json
import re
import sys

import numpy as np
import pytest
import torch

import dataset
from helper.evaluation import evaluate
from models import build, load_model
from scripts import analyze, export
from scripts import evaluate as evaluate_script
from tests.support import images, scripts

CPU = torch.device("cpu")
QUICK = ("--num_workers", 0, "--batch_size", 8)


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    folders = images.class_folders(root / "folders")
    return {"folder": folders, "imagenet": folders, "tinyimagenet": images.tiny_imagenet(root / "tiny")}


@pytest.fixture(scope="module")
def trained(data_dirs, tmp_path_factory):
    """A MobileNetV1 that train_teacher.py trained on a folder, at 32 pixels."""
    save = tmp_path_factory.mktemp("save")
    scripts.succeed("train_teacher.py", "--model", "MobileNetV1", "--dataset", "folder", "--data_dir",
                    data_dirs["folder"], "--image_size", 32, "--epochs", 1, "--batch_size", 6, "--num_workers", 0,
                    "--save_dir", save)
    return scripts.only(save / "models") / "MobileNetV1_last.pth"


def saved(folder, name, images, classes=3):
    """A checkpoint of a network whose batch norms have seen `images`, so that its logits depend on the image."""
    torch.manual_seed(0)
    network = build(name, classes).train()
    with torch.no_grad():
        for _ in range(20):
            network(images)
    torch.save({"model": network.state_dict(), "model_name": name, "num_classes": classes}, folder / "network.pth")
    return folder / "network.pth"


def noise(size):
    return torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))


def run(main, monkeypatch, *flags):
    """The script's main in this process."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, (*flags, *QUICK))])
    main()


def test_a_run_on_a_folder_is_evaluated_at_its_own_image_size(trained, data_dirs, monkeypatch, capsys):
    run(evaluate_script.main, monkeypatch, trained, "--data_dir", data_dirs["folder"], "--json")
    found = json.loads(capsys.readouterr().out)
    result = json.loads((trained.parent / "result.json").read_text())["last"]
    assert (found["dataset"], found["images"], found["classes"]) == ("folder", 12, 3)
    assert found["top1"] == pytest.approx(result["top1"])
    assert [row["class"] for row in found["per_class"]] == list(images.CLASSES)


@pytest.mark.parametrize("name, flags, size", [("imagenet", ("--image_size", 48), 48), ("tinyimagenet", (), 64)])
def test_checkpoints_of_other_data_sets_in_files_are_evaluated(name, flags, size, data_dirs, tmp_path, monkeypatch,
                                                               capsys):
    path = saved(tmp_path, "resnet8", noise(size))
    run(evaluate_script.main, monkeypatch, path, "--dataset", name, "--data_dir", data_dirs[name], *flags, "--json")
    found = json.loads(capsys.readouterr().out)
    settings = {"image_size": size} if name == "imagenet" else {}
    test = dataset.load(name, str(data_dirs[name]), **settings).test_images(CPU)
    expected = evaluate(load_model(path)[0], test)
    assert found["images"] == 12 and found["top1"] == pytest.approx(expected.top1)
    assert found["nll"] == pytest.approx(expected.loss, rel=1e-4)


def test_an_image_size_is_refused_where_images_have_one(trained, monkeypatch):
    with pytest.raises(ValueError, match="--image_size 48: the images of digits have one size; leave it out"):
        run(evaluate_script.main, monkeypatch, trained, "--dataset", "digits", "--image_size", 48)


@pytest.mark.parametrize("name", ["folder", "tinyimagenet"])
def test_pictures_of_networks_trained_on_files(name, trained, data_dirs, tmp_path, monkeypatch):
    path = trained if name == "folder" else saved(tmp_path, "resnet8", noise(64))
    run(analyze.main, monkeypatch, path, "--dataset", name, "--data_dir", data_dirs[name], "--out", tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert f"on {name}" in html and "12 test images, 3 classes" in html
    assert (tmp_path / "out" / "class_means.png").stat().st_size > 10_000


def snippets(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text().replace("FOLDER", str(folder)), re.S)


def test_an_export_of_a_run_on_a_folder_says_how_its_images_are_cut(trained, data_dirs, tmp_path, monkeypatch):
    run(export.main, monkeypatch, trained, "--data_dir", data_dirs["folder"], "--out", tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "RGB images of 32×32 pixels to the logits of 3 classes" in card and "ant, bee, cat\n" in card
    assert "its shorter side has 37 pixels" in card and "the middle 32×32 pixels" in card
    assert "| image_size | 32 |" in card and "    python train_teacher.py --model MobileNetV1" in card


@pytest.mark.parametrize("name, size", [("torchvision:squeezenet1_1", 32), ("timm:resnet10t", 32)])
def test_networks_of_other_libraries_are_exported(name, size, data_dirs, tmp_path, monkeypatch):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    path = saved(tmp_path, name, noise(size)[:2])
    run(export.main, monkeypatch, path, "--dataset", "folder", "--data_dir", data_dirs["folder"], "--image_size", size,
        "--out", tmp_path / "out")
    space = {"pixels": np.zeros((2, 3, size, size), np.uint8)}
    for snippet in snippets(tmp_path / "out"):
        exec(snippet, space)
    original = load_model(path)[0].state_dict()
    assert space["network"].name == name
    assert all(torch.equal(value, original[key]) for key, value in space["network"].state_dict().items())
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (space["mean"].ravel(), space["std"].ravel()))
    with torch.no_grad():
        expected = space["network"]((torch.zeros(2, 3, size, size) - mean) / std)
    assert np.allclose(space["logits"], expected, atol=1e-4, rtol=1e-4)
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".safetensors", ".onnx", ".md"}
    assert not any(":" in file.name for file in (tmp_path / "out").iterdir())
