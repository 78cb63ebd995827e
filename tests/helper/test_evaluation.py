"""The pass over a test set: what its users make of it agrees with a loop written out."""
import pytest
import torch

import dataset
from helper import evaluation
from helper.util.errors import RunError
from models import model_dict

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return dataset.load("digits", "unused")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return model_dict["resnet8"](num_classes=10).train()


def test_a_pass_gives_every_image_once_in_evaluation_mode_and_restores_the_mode(network, data):
    test, before = data.test_images(CPU), {name: value.clone() for name, value in network.state_dict().items()}
    found = evaluation.predict(network, test, batch_size=64)
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    images = torch.cat([images for images, _ in test.batches(500)])
    with torch.no_grad():
        expected = network.eval()(images, named=True)
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert torch.allclose(found.pooled, expected.pooled, atol=1e-5)
    assert torch.equal(found.labels, data.test.labels)
    assert not found.logits.requires_grad


def test_accuracies_are_those_of_the_predictions(network, data):
    test = data.test_images(CPU)
    logits, _, labels = evaluation.predict(network, test, batch_size=100)
    correct, total = logits.argmax(1) == labels, evaluation.evaluate(network, test)
    assert total.top1 == pytest.approx(100 * correct.double().mean().item())
    assert total.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    by_class = evaluation.class_accuracies(network, test, 10)
    assert by_class.tolist() == pytest.approx([100 * correct[labels == c].double().mean().item() for c in range(10)])


def test_the_mode_is_restored_where_a_pass_is_left_early(network, data):
    for _ in evaluation.outputs(network, data.test_images(CPU), batch_size=100):
        assert not network.training
        break
    assert network.training


def test_a_pass_with_a_title_shows_its_progress(network, data, monkeypatch, capsys):
    from helper.util import progress
    monkeypatch.setattr(progress, "PAUSE", 0)
    evaluation.evaluate(network, data.test_images(CPU), batch_size=100, what="the test")
    assert "the test: " in capsys.readouterr().out
    evaluation.evaluate(network, data.test_images(CPU), batch_size=100)
    assert not capsys.readouterr().out


def test_logits_that_are_not_finite_end_the_run_in_words(network, data):
    with torch.no_grad():
        network.fc.bias[3] = torch.nan
    with pytest.raises(RunError, match=r"resnet8 gives logits that are not finite.*: take another checkpoint"):
        evaluation.predict(network, data.test_images(CPU), batch_size=500)
