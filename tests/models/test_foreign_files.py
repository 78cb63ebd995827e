"""Files that are no checkpoints, or damaged or crafted ones: refused in one line, and never executed."""
import argparse
import os
import pickle
import random
import resource
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import Checkpoint, CheckpointError, load_model, read_checkpoint
from tests.support.checkpoints import error_of, saved, weights


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


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
