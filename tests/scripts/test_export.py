"""scripts/export.py: both files give the network's logits, and the card is true."""
import json
import re

import numpy as np
import pytest
import torch

import dataset
from helper.util.errors import RunError, UsageError
from models import load_model, model_dict
from scripts.analysis.checkpoint import need
from scripts.export import ATOL, RTOL, check_onnx
from tests.support import scripts


@pytest.fixture(scope="module")
def exported(digits_teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "new" / "folder"
    scripts.succeed("scripts/export.py", digits_teacher, "--out", out)
    assert {path.name for path in out.iterdir()} == {"resnet14.safetensors", "resnet14.onnx", "README.md"}
    return out


@pytest.fixture(scope="module")
def expected(digits_teacher):
    data = dataset.load("digits", "unused")
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.mean, data.std))
    with torch.no_grad():
        return load_model(digits_teacher)[0]((data.test.images / 255 - mean) / std)


def snippets(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text().replace("FOLDER", str(folder)), re.S)


def test_the_cards_pytorch_snippet_gives_the_same_weights(exported, digits_teacher):
    space = {}
    exec(snippets(exported)[0], space)
    original = load_model(digits_teacher)[0].state_dict()
    loaded = space["network"].state_dict()
    assert list(loaded) and all(torch.equal(loaded[key], value) for key, value in original.items())
    assert not space["network"].training


def test_the_cards_onnx_snippet_gives_the_same_logits_for_any_batch(exported, expected):
    pixels = dataset.load("digits", "unused").test.images.numpy()
    for batch in (slice(0, 1), slice(0, 5), slice(None)):
        space = {"pixels": pixels[batch]}
        exec(snippets(exported)[1], space)
        assert np.allclose(space["logits"], expected[batch], atol=ATOL, rtol=RTOL)


def test_the_card_says_what_was_measured_and_what_the_run_recorded(exported, digits_teacher, expected):
    card = (exported / "README.md").read_text()
    args, result = (json.loads((digits_teacher.parent / name).read_text()) for name in ("args.json", "result.json"))
    labels = dataset.load("digits", "unused").test.labels
    top1 = 100 * (expected.argmax(1) == labels).double().mean()
    loss = torch.nn.functional.cross_entropy(expected.double(), labels)
    assert f"| {top1:.2f} | {result['last']['top5']:.2f} | {loss:.4f} | " in card
    assert f"states epoch 3 and accuracy {result['last']['top1']:.2f}" in card
    assert f"    {args['command']}\n" in card and "| lr_decay_epochs | 2 |" in card and "save_dir |" not in card
    assert f"{sum(p.numel() for p in load_model(digits_teacher)[0].parameters()):,} parameters" in card
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in card


def test_the_export_fails_where_onnxruntime_and_pytorch_differ(exported, digits_teacher, expected):
    model, network = (exported / "resnet14.onnx").read_bytes(), load_model(digits_teacher)[0]
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert check_onnx(model, network, images) < ATOL + RTOL * expected.abs().max()
    with torch.no_grad():
        network.fc.bias[4] += 0.01
    with pytest.raises(RunError, match=r"differ from PyTorch's by up to 0\.01"):
        check_onnx(model, network, images)


def test_a_missing_package_is_named_with_the_cure():
    with pytest.raises(UsageError, match=r"x\.py needs no_such_package: pip install -r requirements-extras\.txt"):
        need("x.py", "json", "no_such_package")


@pytest.mark.parametrize("flags, says", [
    (["{good}"], "required: --out"),
    (["{good}", "--out", "{good}"], "cannot be written to; give another folder"),
    (["{hundred}", "--out", "{out}", "--dataset", "digits"], "has 100 classes, digits has 10"),
])
def test_bad_input_is_one_line_and_writes_nothing(digits_teacher, tmp_path, flags, says):
    torch.save(model_dict["resnet8"](num_classes=100).state_dict(), tmp_path / "hundred.pth")
    names = {"good": digits_teacher, "hundred": tmp_path / "hundred.pth", "out": tmp_path / "out"}
    process = scripts.run("scripts/export.py", *(flag.format(**names) for flag in flags))
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and says in process.stderr
    assert not (tmp_path / "out").exists()
