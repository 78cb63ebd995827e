"""reproduce.py in this process, and teachers for its tables."""
import importlib.util
import sys
import time

import pytest

from tests.support import scripts

GOOD = {"--pairs": "resnet14:resnet8", "--methods": "kd", "--trials": "1", "--dataset": "digits"}


def script():
    """reproduce.py as a module."""
    spec = importlib.util.spec_from_file_location("reproduce", scripts.ROOT / "scripts" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options_of(*flags):
    return script().options_of(list(flags))


def reproduce(*flags):
    """reproduce.py's main with these flags, in this process."""
    module = script()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reproduce.py", *map(str, flags)])
        module.main()


def flat(flags):
    return [x for kv in flags.items() for x in kv]


def wait_for(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
