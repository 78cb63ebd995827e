"""scripts/evaluate.py on the digits, and what it shares with export.py and analyze.py."""
import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

import dataset
from models import load_model, model_dict
from scripts.analysis import cost
from scripts.analysis.metrics import numbered
from scripts.evaluate import columns_of, measure, rows
from tests.support import scripts

QUICK = ("--batch_size", 16)  # the latency of a batch is timed as well


@pytest.fixture(scope="module")
def logits(digits_teacher):
    """The teacher's on the test images, by nothing but the network, and the labels."""
    data = dataset.load("digits", "unused")
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.mean, data.std))
    with torch.no_grad():
        return load_model(digits_teacher)[0]((data.test.images / 255 - mean) / std), data.test.labels


def test_json_on_standard_output_agrees_with_the_network_and_its_run(digits_teacher, logits):
    process = scripts.succeed("scripts/evaluate.py", digits_teacher, *QUICK, "--json")
    found, (z, y) = json.loads(process.stdout), logits
    result = json.loads((digits_teacher.parent / "result.json").read_text())
    assert found["dataset"] == "digits" and found["images"] == 355  # the run's own data set
    assert found["top1"] == pytest.approx(result["last"]["top1"]) == found["stated_in_the_file"]["accuracy"]
    assert found["top5"] == pytest.approx(result["last"]["top5"])
    log_p = z.double().log_softmax(1)
    assert found["nll"] == pytest.approx(-log_p[range(355), y].mean().item(), rel=1e-4)
    confidence, predicted = log_p.exp().max(1)
    gaps = [(((predicted == y).double() - confidence)[(confidence > b / 15) & (confidence <= (b + 1) / 15)].sum().abs())
            for b in range(15)]
    assert found["ece"] == pytest.approx(sum(gaps).item() / 355, rel=1e-3)
    seven = found["per_class"][7]
    p = log_p[y == 7].exp()
    assert seven["class"] == "7" and seven["images"] == len(p)
    assert seven["top1"] == pytest.approx(100 * (p.argmax(1) == 7).double().mean().item())
    assert seven["spread"] == pytest.approx(p.var(0, correction=0).sum().item(), rel=1e-3)
    assert found["consistency"]["spread"] == pytest.approx(sum(row["spread"] for row in found["per_class"]) / 10)
    assert found["parameters"] == sum(v.numel() for v in load_model(digits_teacher)[0].parameters())
    assert [t["images"] for t in found["latency"]["batches"]] == [1, 16]
    assert all(t["median_ms"] > 0 and t["runs"] >= 1 for t in found["latency"]["batches"])
    assert "per_superclass" not in found and "superclass" not in seven


def test_a_bare_state_dict_is_measured_and_the_table_shows_it(digits_teacher, tmp_path):
    torch.save(load_model(digits_teacher)[0].state_dict(), tmp_path / "some.pth")
    out = scripts.succeed("scripts/evaluate.py", tmp_path / "some.pth", "--dataset", "digits", *QUICK).stdout
    result = json.loads((digits_teacher.parent / "result.json").read_text())
    assert f"top-1 {result['last']['top1']:.2f}, top-5 {result['last']['top5']:.2f}\n" in out
    assert "resnet14, " in out and "355 test images" in out and "(15 bins)" in out and "cpu, 1 threads" in out
    assert len(out.split("\n\n")[1].splitlines()) == 11  # a head, and a row for each class


def test_superclasses_are_those_of_the_data(cifar_server, tmp_path):
    data = dataset.load("cifar100", str(tmp_path / "data"))
    assert data.superclasses[:3] == ("coarse2", "coarse1", "coarse0") and len(data.superclasses) == 100
    assert dataset.load("digits", "unused").superclasses == ()
    names, of = numbered(data.superclasses)
    assert [names[i] for i in of] == list(data.superclasses)
    labels = data.test.labels

    class Answer:
        logits, labels = torch.eye(100)[data.test.labels.flip(0)], data.test.labels

    found = measure(read_subject("resnet8"), data, Answer)
    assert found["per_class"][5]["superclass"] == data.superclasses[5]
    for row in found["per_superclass"]:
        own = [c for c in labels.tolist() if data.superclasses[c] == row["superclass"]]
        assert row["images"] == len(own) and row["top1"] == 0
        right = sum(data.superclasses[99 - c] == row["superclass"] for c in own)
        assert row["within"] == pytest.approx(100 * right / len(own))


def read_subject(name):
    from models import Checkpoint
    from scripts.analysis.checkpoint import LoadedCheckpoint
    return LoadedCheckpoint("x.pth", model_dict[name](num_classes=100), Checkpoint({}), None)


def test_flops_are_twice_the_products_of_convolutions_and_classifier():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.ReLU(), torch.nn.Flatten(),
                              torch.nn.Linear(8 * 16, 5))
    assert cost.flops(network, torch.zeros(1, 3, 4, 4)) == 2 * (16 * 8 * 3 * 9 + 8 * 16 * 5)
    assert cost.parameters(network) == 8 * 27 + 8 * 16 * 5 + 5


def test_a_class_without_images_is_null_in_json_and_a_dash_in_the_table():
    found = rows({"class": ("a", "b")}, {"images": torch.tensor([3, 0]), "top1": torch.tensor([50.0, math.nan])})
    assert json.dumps(found[1]) == '{"class": "b", "images": 0, "top1": null}'
    assert columns_of(found).splitlines()[1:] == ["a           3  50.00", "b           0      -"]


@pytest.mark.parametrize("flags, says", [
    ([], "required: CHECKPOINT"),
    (["missing.pth"], "missing.pth does not exist"),
    (["{good}", "--dataset", "mnist"], "choose from"),
    (["{good}", "--batch_size", "0"], "'0' is not an integer of 1 or more"),
    (["{good}", "--json", "no/such/folder/x.json"], "name a file in a folder that exists"),
    (["{hundred}", "--dataset", "digits"], "has 100 classes, digits has 10: give the --dataset"),
    (["{damaged}", "--dataset", "digits"], "args.json is damaged"),
    (["{list}", "--dataset", "digits"], "args.json is damaged"),
])
def test_bad_input_is_one_line(digits_teacher, tmp_path, flags, says):
    hundred, damaged = tmp_path / "hundred.pth", tmp_path / "run" / "resnet14.pth"
    damaged.parent.mkdir()
    torch.save(model_dict["resnet8"](num_classes=100).state_dict(), hundred)
    damaged.write_bytes(digits_teacher.read_bytes())
    (damaged.parent / "args.json").write_text('{"settings": ')
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "resnet14.pth").write_bytes(digits_teacher.read_bytes())
    (tmp_path / "list" / "args.json").write_text("[]")
    names = {"good": digits_teacher, "hundred": hundred, "damaged": damaged, "list": tmp_path / "list" / "resnet14.pth"}
    flags = [flag.format(**names) for flag in flags]
    process = scripts.run("scripts/evaluate.py", *flags)
    assert process.returncode == 2 and not process.stdout
    assert process.stderr.count("\n") == 1 and says in process.stderr


def test_names_that_are_no_text_and_an_output_that_is_not_utf8_are_shown_escaped(digits_teacher, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff\x1b")
    folder.mkdir()
    path = shutil.copy(digits_teacher, folder / "resnet14.pth")
    command = [sys.executable, "scripts/evaluate.py", path, "--dataset", "digits", *map(str, QUICK)]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    text, found = (subprocess.run([*command, *flags], cwd=scripts.ROOT, env=environment, capture_output=True)
                   for flags in ([], ["--json"]))
    assert text.returncode == found.returncode == 0
    assert b"\x1b" not in text.stdout + text.stderr and rb"\udcff\x1b/resnet14.pth" in text.stdout
    assert json.loads(found.stdout)["checkpoint"] == str(path)
