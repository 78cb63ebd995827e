"""Checkpoints: those that must load, and every way in which a file can be none."""
import argparse
import os
import pickle
import random
import resource
import struct
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import Checkpoint, CheckpointError, load_model, model_dict, model_name_from, read_checkpoint
from tests.golden.recipe import fill, model_input


def weights(name="resnet8", num_classes=10):
    return fill(model_dict[name](num_classes=num_classes).state_dict())


def saved(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def error_of(call, *args, **kwargs):
    with pytest.raises(CheckpointError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


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


# --- files that are no checkpoints ---


def test_missing_file_directory_and_impossible_path(tmp_path):
    message = error_of(read_checkpoint, tmp_path / "none.pth")
    assert "none.pth does not exist" in message and "fetch_pretrained_teachers.sh" in message
    assert "is a directory" in error_of(read_checkpoint, tmp_path)
    assert "cannot be read" in error_of(read_checkpoint, "a\0b")
    assert "cannot be read" in error_of(read_checkpoint, "a" * 600)
    path = tmp_path / "file"
    path.touch()
    assert "is empty" in error_of(read_checkpoint, path)
    assert "cannot be read" in error_of(read_checkpoint, path / "below.pth")


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", "/dev/zero", "/dev/null"):
        assert "it is a pipe or a device" in error_of(read_checkpoint, path)


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    path = saved(weights(), tmp_path / "a.pth")
    os.truncate(path, 10**12)  # sparse
    assert "has more than 8 GiB" in error_of(read_checkpoint, path)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_a_truncated_file(tmp_path, archive, kept):
    path = tmp_path / "a.pth"
    torch.save({"model": weights()}, path, _use_new_zipfile_serialization=archive)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert "truncated or corrupt" in error_of(read_checkpoint, path)


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_of_any_record_is_noticed(tmp_path, seed):
    path, rng = saved({"model": weights(), "epoch": 3}, tmp_path / "a.pth"), random.Random(seed)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    for record in records:
        # The content of a record lies behind its header: 30 bytes, its name, and what pads it.
        name_length, padding = struct.unpack("<HH", good[record.header_offset + 26 : record.header_offset + 30])
        start = record.header_offset + 30 + name_length + padding
        flipped = bytearray(good)
        flipped[start + rng.randrange(record.file_size)] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        assert f"truncated or corrupt (the record {record.filename}" in error_of(load_model, path)


def test_records_that_unpack_to_more_than_the_file_are_refused(tmp_path):
    good, path = saved(weights(), tmp_path / "good.pth"), tmp_path / "bomb.pth"
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for record in archive.infolist():
            bomb.writestr(record.filename, archive.read(record))
    assert "its records are compressed" in error_of(read_checkpoint, path)


@pytest.mark.parametrize("name", ["torch\nTensor", "builtins\nbytearray"])
def test_a_small_file_that_asks_for_much_memory_is_refused(tmp_path, name):
    """{"model": {"a": NAME(10**10)}} as a pickle: torch.load allows both calls."""
    def text(string):
        return b"X" + struct.pack("<I", len(string)) + string.encode()

    number = b"\x8a\x08" + struct.pack("<q", 10**10)
    pickled = b"\x80\x02}" + text("model") + b"}" + text("a") + f"c{name}\n".encode() + number + b"\x85Rss."
    with zipfile.ZipFile(saved({}, tmp_path / "empty.pth")) as empty, zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        for record in empty.infolist():
            content = pickled if record.filename.endswith("data.pkl") else empty.read(record)
            file.writestr(record.filename, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "truncated or corrupt" in error_of(read_checkpoint, tmp_path / "a.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes


@pytest.mark.parametrize("data", [
    b"<html><body>404 Not Found</body></html>",
    b"version https://git-lfs.github.com/spec/v1",
    b"\n",
    bytes(range(256)) * 8,
    b"\x80\x02" + bytes(64),
    pickle.dumps({"a": 1}, protocol=2),
    pickle.dumps({"a": 1}, protocol=4),
], ids=["html", "pointer", "newline", "bytes", "pickle-like", "pickle 2", "pickle 4"])
def test_a_file_of_another_kind(tmp_path, data, recwarn):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    assert "is not a PyTorch checkpoint" in error_of(read_checkpoint, path)
    assert not recwarn.list


@pytest.mark.parametrize("form", ["archive", "legacy", "pickle 0", "pickle 2", "pickle 4"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, form):
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    content = {"model": weights(), "epoch": Payload(trace)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"epoch": Payload(trace)}, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    message = error_of(read_checkpoint, path)
    # PyTorch reads no opcode of the other protocols.
    says = "is not a PyTorch checkpoint" if form in ("pickle 0", "pickle 4") else "io.open), which could run any code"
    assert says in message
    assert not trace.exists()
    # The payload is a live one: unpickling it the unsafe way does run it.
    if form.startswith("pickle"):
        pickle.loads(path.read_bytes())["epoch"].close()
        assert trace.exists()


def test_a_pickled_object_is_named(tmp_path):
    """The published _last.pth files hold their arguments so."""
    path = saved({"model": weights(), "opt": argparse.Namespace(lr=0.05)}, tmp_path / "a.pth")
    message = error_of(read_checkpoint, path)
    assert "argparse.Namespace" in message and "ckpt_epoch_" in message
    message = error_of(read_checkpoint, saved(torch.nn.Linear(2, 2), tmp_path / "b.pth"))
    assert "torch.nn.modules.linear.Linear" in message


@pytest.mark.parametrize("content, expected", [
    ({}, "no state dict inside: it needs one under 'model' or 'state_dict', but holds nothing"),
    ({"net": {"a": torch.zeros(2)}, "epoch": 1}, "holds net, epoch"),
    ({"epoch": 1, "loss": torch.tensor(0.5)}, "no state dict inside"),
    ([torch.zeros(2)], "no state dict inside but a list"),
    (torch.zeros(2), "no state dict inside but a Tensor"),
    (7, "no state dict inside but a int"),
    (None, "no state dict inside but a NoneType"),
    ({"model": {}}, "empty state dict"),
    ({"model": {"a": 1}}, "a in its state dict is not a tensor but of type int"),
    ({"a": torch.zeros(2), "b": None}, "b in its state dict is not a tensor"),
    ({"model": {"a": {"b": torch.zeros(1)}}}, "not a tensor but of type dict"),
    ({"model": {3: torch.zeros(1)}}, "the key 3 of its state dict is not a string"),
    ({("x", 1): torch.zeros(1)}, "the key ('x', 1)"),
    ({"model": {"a\nb" * 99: 1}}, "not a tensor"),
    ({"model": {"a": torch.eye(3).to_sparse()}}, "a is not a dense tensor"),
    ({"model": {"a": torch.zeros(2, dtype=torch.complex64)}}, "a is not a dense tensor"),
    ({"model": {"a": torch.empty(2, device="meta")}}, "a is not a dense tensor"),
    ({"model": {"a": torch.zeros(1).expand(2**50)}}, "a is not a dense tensor"),
])
def test_no_state_dict_inside(tmp_path, content, expected):
    assert expected in error_of(read_checkpoint, saved(content, tmp_path / "a.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(tmp_path, value, dtype):
    state = weights()
    state["layer3.0.conv1.weight"] = state["layer3.0.conv1.weight"].to(dtype)
    state["layer3.0.conv1.weight"][1, 2, 0, 1] = value
    message = error_of(read_checkpoint, saved(state, tmp_path / "a.pth"))
    assert "layer3.0.conv1.weight holds NaN or infinite" in message


# --- any bytes at all ---


def _sample(archive):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.pth")
        content = {"model": {"fc.weight": torch.ones(4, 3), "fc.bias": torch.zeros(4)}, "epoch": 3}
        torch.save(content, path, _use_new_zipfile_serialization=archive)
        return path.read_bytes()


SAMPLES = {archive: _sample(archive) for archive in (True, False)}
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reads_or_refuses(path):
    """Either a checkpoint, or a CheckpointError; any other exception fails the test."""
    try:
        assert isinstance(read_checkpoint(path), Checkpoint)
    except CheckpointError as error:
        assert "\n" not in str(error)


@quick
@given(prefix=st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", SAMPLES[False][:14], b"c"]),
       data=st.binary(max_size=300))
def test_random_bytes(tmp_path, prefix, data):
    (tmp_path / "a.pth").write_bytes(prefix + data)
    reads_or_refuses(tmp_path / "a.pth")


@quick
@given(archive=st.booleans(), data=st.data())
def test_damaged_checkpoints(tmp_path, archive, data):
    """A valid file with some of its bytes replaced."""
    damaged = bytearray(SAMPLES[archive])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.pth").write_bytes(bytes(damaged))
    reads_or_refuses(tmp_path / "a.pth")


shapes = st.lists(st.integers(0, 3), max_size=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.text(max_size=5) | st.integers() | st.sampled_from(["model", "state_dict", "epoch", "accuracy"])
plain = st.recursive(
    scalars | st.builds(torch.zeros, shapes),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@quick
@given(content=plain)
def test_any_plain_content(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    reads_or_refuses(tmp_path / "a.pth")
