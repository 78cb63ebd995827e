"""No command line and no file brings either script to a traceback.

FUZZ_SECONDS=60 python -m pytest tests/end_to_end/test_fuzz.py    # longer than the suite's few seconds
"""
import os
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distiller_zoo import METHODS, MethodError
from helper import cli
from helper.util.errors import UsageError
from models import CheckpointError, load_model, model_dict

SECONDS = float(os.environ.get("FUZZ_SECONDS", 5))
ROUND = settings(max_examples=100, deadline=None, database=None,
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])

PARSERS = [cli._student_parser(method) for method in (None, *METHODS.values())]
FLAGS = sorted({flag for parser in PARSERS for flag in parser._option_string_actions} - {"-h", "--help"}
               | {"-t", "--model", "--", "-", "--x"})
VALUES = st.one_of(
    st.sampled_from([*METHODS, *model_dict, "1", "0", "-1", "0.5", "1e400", "nan", "inf", "", " ", "150,180", ",", "1,",
                     "cpu", "auto", "digits", "cifar100", "exact", "never", "=", "٣", "1_000", "0x10", "\0", "é"]),
    st.integers().map(str), st.floats().map(str), st.text(max_size=20))
TOKENS = st.one_of(st.sampled_from(FLAGS), VALUES, st.tuples(st.sampled_from(FLAGS), VALUES).map("=".join))
COMMANDS = st.lists(TOKENS, max_size=12)


def repeat(test):
    """Rounds of a hypothesis test, each with new examples, for FUZZ_SECONDS."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        test()


@pytest.mark.parametrize("parse", [cli.student_options, cli.teacher_options])
def test_any_command_line_is_taken_or_refused_in_one_line(parse):
    @ROUND
    @given(COMMANDS)
    def run(argv):
        try:
            options = parse(argv)
        except (UsageError, MethodError) as error:
            assert str(error)
        except SystemExit as shown:
            assert shown.code == 0 and {"-h", "--help", "--dry_run"} & set(argv)
        else:
            assert options.epochs >= 1

    repeat(run)


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.pth"
    torch.save({"model": model_dict["resnet8"](num_classes=3).state_dict(), "epoch": 1}, path)
    return path.read_bytes()


def test_any_damage_to_a_checkpoint_is_one_clear_line(good_bytes, tmp_path):
    path = tmp_path / "resnet8_vanilla.pth"
    damage = st.lists(st.tuples(st.integers(0, len(good_bytes) - 1), st.binary(max_size=8)), max_size=6)

    @ROUND
    @given(damage, st.integers(0, len(good_bytes)), st.booleans())
    def run(places, length, cut):
        content = bytearray(good_bytes)
        for place, patch in places:
            content[place : place + len(patch)] = patch
        path.write_bytes(content[:length] if cut else content)
        try:
            network, _ = load_model(path)
        except CheckpointError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert network.name in model_dict

    repeat(run)


def test_any_bytes_are_one_clear_line(tmp_path):
    path = tmp_path / "any.pth"

    @ROUND
    @given(st.one_of(st.binary(max_size=300), st.binary(max_size=100).map(lambda b: b"PK\x03\x04" + b),
                     st.binary(max_size=100).map(lambda b: b"\x80\x02" + b)))
    def run(content):
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as refused:
            load_model(path)
        assert "\n" not in str(refused.value)

    repeat(run)
