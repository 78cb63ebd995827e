"""Checkpoints: those that must load, how the network is found, and weights that do not fit it."""
from collections import OrderedDict

import pytest
import torch

from models import Checkpoint, load_model, model_dict, model_name_from, read_checkpoint
from tests.golden.recipe import model_input
from tests.support.checkpoints import error_of, saved, weights

# --- files that load ---


@pytest.mark.parametrize("wrap", [
    lambda state: {"model": state, "epoch": 240, "accuracy": torch.tensor(71.5)},
    lambda state: {"state_dict": state},
    lambda state: state,
    lambda state: OrderedDict((f"module.{k}", v) for k, v in state.items()),
    lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    lambda state: {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}},
], ids=["model", "state_dict", "bare", "parallel", "compiled in parallel", "parallel in compiled"])
def test_every_form_loads_the_same_network(tmp_path, wrap):
    state = weights()
    network, checkpoint = load_model(saved(wrap(state), tmp_path / "resnet8_vanilla" / "ckpt_epoch_240.pth"))
    assert network.name == "resnet8" and not network.training
    assert list(checkpoint.state_dict) == list(state)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in state.items())
    assert checkpoint.num_classes == 10
    assert network(model_input()).shape == (2, 10)


def test_only_a_prefix_of_all_keys_is_taken_off(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(read_checkpoint(saved(state, tmp_path / "a.pth")).state_dict) == ["module.a", "b"]


def test_the_record_beside_the_weights(tmp_path):
    content = {"model": weights(), "epoch": 240, "accuracy": torch.tensor(71.5), "model_name": "resnet8"}
    read = read_checkpoint(saved(content, tmp_path / "a.pth"))
    assert (read.epoch, read.accuracy, read.model_name, read.num_classes) == (240, 71.5, "resnet8", 10)


@pytest.mark.parametrize("epoch, accuracy, name", [
    (None, None, None),
    ("7", "70%", 3),
    (True, float("nan"), ["resnet8"]),
    (1.5, torch.zeros(3), b"resnet8"),
    ([], torch.tensor(float("inf")), {}),
    (torch.tensor(3), 10**400, torch.zeros(1)),
    (1j, torch.tensor(1j), ()),
])
def test_a_senseless_record_is_left_out(tmp_path, epoch, accuracy, name):
    content = {"model": weights(), "epoch": epoch, "accuracy": accuracy, "model_name": name}
    read = read_checkpoint(saved(content, tmp_path / "a.pth"))
    assert (read.epoch, read.accuracy, read.model_name) == (None, None, None)


def test_files_of_older_pytorch_load(tmp_path):
    """The format before archives, and no counters in the batch norms."""
    state = {k: v for k, v in weights().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "resnet8.pth"
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    network, _ = load_model(path)
    assert torch.equal(network.fc.weight, state["fc.weight"]) and network.bn1.num_batches_tracked == 0


def test_loading_leaves_the_random_state_alone(tmp_path):
    path = saved(weights(), tmp_path / "a.pth")
    before = torch.get_rng_state()
    load_model(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", model_dict)
def test_every_network_is_known_by_its_shapes(name):
    """And by them alone: no two networks of the set could be confused, whatever the number of classes."""
    with torch.device("meta"):
        state = model_dict[name](num_classes=7).state_dict()
    assert model_name_from("ckpt.pth", Checkpoint(state, num_classes=7)) == name


# --- the network's name ---


@pytest.mark.parametrize("path, expected", [
    ("save/models/resnet32x4_vanilla/ckpt_epoch_240.pth", "resnet32x4"),
    ("save/models/resnet8x4_vanilla/resnet8_best.pth", "resnet8x4"),
    ("wrn_40_2_vanilla/ckpt.pth", "wrn_40_2"),
    ("wrn_40_2_cifar100_lr_0.05_decay_0.0005_trial_0/ckpt.pth", "wrn_40_2"),
    ("ResNet50_vanilla/ckpt.pth", "ResNet50"),
    ("vgg13/last.pth", "vgg13"),
    ("other/cifar100_resnet56-f2eff4c8.pt", "resnet56"),
    ("S:resnet8x4_T:resnet32x4_cifar100_kd/resnet8x4_best.pth", "resnet8x4"),
    ("resnet110x_vanilla/MobileNetV2.pth", "MobileNetV2"),
])
def test_the_name_from_folder_or_file(path, expected):
    assert model_name_from(path, Checkpoint({})) == expected


def test_the_longest_name_that_begins_the_folder_wins(monkeypatch):
    monkeypatch.setitem(model_dict, "wrn_40_2_thin", model_dict["wrn_40_2"])
    assert model_name_from("wrn_40_2_thin_vanilla/a.pth", Checkpoint({})) == "wrn_40_2_thin"


def test_the_name_in_the_checkpoint_wins():
    assert model_name_from("resnet56_vanilla/resnet20.pth", Checkpoint({}, model_name="vgg8")) == "vgg8"


def test_a_relative_path_has_its_folder_too(tmp_path, monkeypatch):
    (tmp_path / "vgg8_vanilla").mkdir()
    monkeypatch.chdir(tmp_path / "vgg8_vanilla")
    assert model_name_from("ckpt.pth", Checkpoint({})) == "vgg8"


@pytest.mark.parametrize("path", ["x/a.pth", "x/resnet8_or_resnet20.pth", "x/resnet9.pth", "resnet8b/a.pth"])
def test_no_name_anywhere(path):
    message = error_of(model_name_from, path, Checkpoint({"a": torch.zeros(1)}))
    assert path in message and all(name in message for name in model_dict)


def test_unknown_names_list_the_known(tmp_path):
    path = saved({"model": weights(), "model_name": "resnet9"}, tmp_path / "a.pth")
    for message in (error_of(load_model, path), error_of(load_model, path, model_name="resnet9")):
        assert "resnet9;" in message and "MobileNetV2" in message
    assert load_model(path, model_name="resnet8")[0].name == "resnet8"


# --- weights that do not fit ---


def test_another_architecture_is_named(tmp_path):
    path = saved({"model": weights("resnet20")}, tmp_path / "resnet8_vanilla" / "a.pth")
    message = error_of(load_model, path)
    assert "does not fit resnet8" in message and "layer1.1.conv1.weight" in message
    assert "weights fit resnet20" in message
    message = error_of(load_model, path, model_name="wrn_16_1")
    assert "missing block1.layer.0.bn1.weight" in message and "weights fit resnet20" in message
    message = error_of(load_model, path, model_name="resnet32x4")
    assert "conv1.weight is (16, 3, 3, 3) instead of (32, 3, 3, 3)" in message


def test_a_missing_or_additional_key_is_named(tmp_path):
    state = weights()
    del state["layer2.0.bn2.bias"]
    message = error_of(load_model, saved(state, tmp_path / "resnet8.pth"))
    assert "missing layer2.0.bn2.bias" in message and "fit no network" in message
    state = weights() | {"bonus": torch.zeros(1)}
    assert "unexpected bonus" in error_of(load_model, saved(state, tmp_path / "resnet8.pth"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_weights_that_are_no_floats_are_named(tmp_path, dtype):
    state = weights()
    state["fc.weight"] = state["fc.weight"].to(dtype)
    assert f"does not fit resnet8: fc.weight is {dtype}" in error_of(load_model, saved(state, tmp_path / "resnet8.pth"))


@pytest.mark.parametrize("change, says", [
    ({"fc.weight": torch.zeros(10**9, 0)}, "fc.weight of shape (1000000000, 0) has no elements"),
    ({"bn1.bias": torch.zeros(0)}, "bn1.bias of shape (0,) has no elements"),
    ({"fc.weight": torch.zeros(100_001, 1)}, "claims 100,001 classes, more than 100,000"),
])
def test_a_number_of_classes_is_checked_before_anything_is_built(tmp_path, change, says):
    path = saved({"model": weights() | change, "num_classes": 10**9}, tmp_path / "resnet8.pth")
    assert says in error_of(load_model, path)


def test_a_claimed_number_of_classes_must_be_borne_out_by_a_weight(tmp_path):
    state = {key: value for key, value in weights().items() if key != "fc.weight"}  # no matrix: the file's word counts
    for said, read in ((10**9, None), (10, 10)):
        path = saved({"model": state, "num_classes": said}, tmp_path / "resnet8.pth")
        assert read_checkpoint(path).num_classes == read
    assert "missing fc.weight" in error_of(load_model, path)


@pytest.mark.parametrize("change", [{"bn1.running_var": torch.full((16,), -1.0)},
                                    {"conv1.weight": torch.full((16, 3, 3, 3), 1e38)}])
def test_finite_weights_whose_outputs_are_not_are_named(tmp_path, change):
    message = error_of(load_model, saved(weights() | change, tmp_path / "resnet8.pth"))
    assert "the outputs of resnet8 with these weights are NaN or infinite" in message


def test_a_network_that_takes_images_of_another_size_alone_loads(tmp_path, monkeypatch):
    class Fixed(type(model_dict["resnet8"]())):
        def outputs(self, x):
            return super().outputs(x.view(-1, 3, 48, 48))

    network = Fixed("fixed", 8, (16, 16, 32, 64), 10)
    monkeypatch.setitem(model_dict, "fixed", lambda num_classes: Fixed("fixed", 8, (16, 16, 32, 64), num_classes))
    path = saved({"model": network.state_dict(), "model_name": "fixed"}, tmp_path / "a.pth")
    assert load_model(path)[0](torch.zeros(2, 3, 48, 48)).shape == (2, 10)


def test_the_wrong_number_of_classes_says_both(tmp_path):
    path = saved(weights(num_classes=10), tmp_path / "resnet8.pth")
    message = error_of(load_model, path, num_classes=100)
    assert "has 10 classes, 100 are expected" in message
    assert load_model(path, num_classes=10)[0].fc.out_features == 10
