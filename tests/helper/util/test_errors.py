"""Ends of a script that are not faults of its code: one line, no traceback."""
import os
import signal
import subprocess
import sys

import pytest
import torch

from helper.util.errors import Interrupted, RunError, UsageError, guarded, printable
from tests.support import scripts

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from helper.util.errors import *
def main():
    {body}
guarded(main)
"""


def run(tmp_path, body, **how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(scripts.ROOT), body=body))
    return subprocess.run([sys.executable, script], text=True, capture_output=True, timeout=120,
                          errors="replace", env=os.environ | how.pop("env", {}), **how)


@pytest.mark.parametrize(("error", "code", "says"), (
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."), 1,
     "error: the GPU's memory is full: give a smaller --batch_size, --cuda_graph off, or --teacher_cache off; the same "
     "command continues from the last finished epoch\n"),
    (UsageError("two\nlines"), 2, "error: two lines\n"),
    (RunError("over"), 1, "error: over\n"),
    (Interrupted(15), 143, "error: stopped by SIGTERM; the same command continues from the last finished epoch\n"),
    (FileNotFoundError(2, "No such file", "a"), 1,
     "error: a: No such file; fix that, and the same command continues from what was saved before\n")))
def test_a_known_end_is_one_line(error, code, says, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded(main)
    assert ended.value.code == code and capsys.readouterr().err == says


def test_a_fault_of_this_code_keeps_its_traceback():
    def main():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        guarded(main)


def test_a_reader_that_has_seen_enough_ends_a_script_quietly():
    done = subprocess.run([f"{sys.executable} train_student.py --help | head -1"], shell=True, text=True,
                          capture_output=True, cwd=scripts.ROOT, timeout=120)
    assert done.stderr == "" and done.stdout.startswith("usage: ")


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "latin-1"},
                                         {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_output_that_is_not_utf8_shows_escapes(environment, tmp_path):
    done = run(tmp_path, "print('1·CE → ×'); raise UsageError('m\u2265 wrong')", env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "CE" in done.stdout


def test_what_cannot_be_printed_is_escaped():
    assert printable("a\x1b[31m\udcff b\n c") == "a\\x1b[31m\\udcff b c"


def test_missing_packages_are_named_with_the_command_that_installs_them():
    for script in ("train_student.py", "train_teacher.py", "scripts/evaluate.py", "scripts/reproduce.py"):
        done = subprocess.run([sys.executable, "-S", "-E", script, "--help"], text=True, capture_output=True,
                              cwd=scripts.ROOT, timeout=60)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "torch" in done.stderr and "pip install -r requirements.txt" in done.stderr


def test_a_killed_pipe_is_said_by_its_exit_code(tmp_path):
    done = subprocess.run(f"{{ {sys.executable} train_student.py --help; echo $? >&2; }} | true", shell=True, text=True,
                          capture_output=True, cwd=scripts.ROOT, timeout=120, executable="/bin/bash")
    assert done.stderr.strip() in (str(128 + signal.SIGPIPE), "0")  # 0 where all was written before the reader ended
