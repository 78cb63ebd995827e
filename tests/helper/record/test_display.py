"""What a run shows: a bar and then a line for each epoch on a terminal, plain lines in a log."""
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest

from helper.evaluation import Evaluation
from helper.meters import Averages
from helper.record.display import Display
from tests.support import scripts

RUN = ("--dataset", "digits", "--imbalance", "0.05", "--batch_size", "32", "--warm_up", "0", "--epochs", "2",
       "--lr_decay_epochs", "1", "--print_freq", "1", "--device", "cpu")


@pytest.mark.parametrize("losses", [{"ce": 2.34567}, {"ce": 2.3, "dkd": 14.567, "ikd": 12.3}])
def test_an_epochs_line_fits_a_hundred_columns(losses, capsys):
    display = Display("train", 1, 240, 782, 100)
    display.started -= 240 * 100  # as if an epoch took so long
    averages = Averages(sum(losses.values()), losses, 65.43, 90.0)
    display.epoch(100, averages, Evaluation(1.5, 60.12, 85.0), {"top1": 60.44}, 123.4)
    line, = capsys.readouterr().out.splitlines()
    assert len(line) <= 100 and line.startswith("train 100/240  ") and line.endswith(" left")
    assert ("loss 2.35" in line) == (len(losses) == 1) and "test 60.12" in line


def on_a_terminal(*command, columns=100, until=lambda shown, process: True):
    """What the command shows on a terminal, and its exit code; until: asked with what is shown, while it is False."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, *command], cwd=scripts.ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
                               env=environment)
    os.close(theirs)
    shown, done = b"", False
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
        done = done or until(shown, process)
    os.close(ours)
    return shown.decode(), process.wait()


def test_a_terminal_shows_a_bar_for_each_epoch_and_a_log_lines_alone(tmp_path):
    command = ("train_teacher.py", "--model", "resnet8", *RUN)
    shown, code = on_a_terminal(*command, "--save_dir", str(tmp_path / "a"))
    assert code == 0 and re.search(r"train 1/2: +\d+%\|", shown) and "\r" in shown, shown
    assert re.search(r"train 1/2  loss [\d.]+  train", shown)
    logged = scripts.succeed(*command, "--save_dir", tmp_path / "b").stdout
    assert "\r" not in logged and "\x1b" not in logged and "%|" not in logged
    assert re.findall(r"^train ./2", logged, re.M) == ["train 1/2", "train 2/2"]


def test_on_a_terminal_an_error_takes_the_line_of_a_bar(tmp_path):
    """Ctrl-C in the middle of an epoch: the bar is cleared, and the error has its own line."""
    def interrupt(shown, process):
        if b"train 2/" in shown:
            process.send_signal(signal.SIGINT)
            return True
        return False

    shown, code = on_a_terminal("train_teacher.py", "--model", "resnet8", *RUN, "--epochs", "200", "--save_dir",
                                str(tmp_path), until=interrupt)
    assert code == 130, shown[-500:]
    assert re.search(r"\r\x1b\[Kerror: stopped by SIGINT; the same command continues", shown), shown[-500:]


def test_the_first_stage_and_its_weight_are_in_the_first_lines(digits_teacher, tmp_path):
    for method, says in (("fsp", "first 1 epochs of 1·flows, then 1·CE"), ("abound", "first 1 epochs of 1·boundaries")):
        process = scripts.run("train_student.py", "--path_t", digits_teacher, *RUN, "--distill", method,
                              "--init_epochs", 1, "--epochs", 1, "--save_dir", tmp_path / method)
        assert process.returncode == 0 and says in process.stdout, process.stdout + process.stderr
