"""Faults of a run's files, then the same command again: kills, errors of system calls, a full disk.

A fault does no harm, or ends the run with one line, or kills it. The same command then ends with the files of a run
that was never disturbed, bit by bit, the teacher's cache included.

FAULT_SECONDS=600 python -m pytest --slow -s tests/end_to_end/test_faults.py    # prints how many faults it made
"""
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter

import pytest

from tests.end_to_end.test_resume import assert_same, record
from tests.support import mounts, scripts

SECONDS = float(os.environ.get("FAULT_SECONDS", 60))
FLAGS = ("--dataset", "digits", "--imbalance", 0.005, "--epochs", 2, "--batch_size", 64, "--save_freq", 1)
STUDENT = ("train_student.py", *FLAGS, "--model_s", "resnet8", "--warm_up", 0)
CACHED = (*STUDENT, "--distill", "kd", "-r", 0.1, "-a", 0.9, "--avg", 1, "--teacher_cache", "auto", "--cache_dtype",
          "float32")
STAGED = (*STUDENT, "--distill", "factor", "--init_epochs", 1)
# What the system may answer to a call.
ERRORS = {"openat": ("EACCES", "EIO", "ENOSPC"), "read": ("EIO",), "write": ("EIO", "ENOSPC"),
          "pwrite64": ("EIO", "ENOSPC"), "fallocate": ("ENOSPC",), "ftruncate": ("EIO", "ENOSPC"),
          "fsync": ("EIO", "ENOSPC"), "rename": ("EACCES", "EIO", "ENOSPC"), "unlink": ("EACCES", "EIO"),
          "mkdir": ("EACCES", "ENOSPC")}


class Subject:
    """A command of train_student.py, and what it leaves where nothing disturbs it."""

    def __init__(self, command, teacher, folder):
        self.command, self.folder = (*command, "--path_t", teacher), folder
        folder.mkdir()
        assert (process := self.begin(folder / "whole", f"count:{folder / 'counts'}")).wait() == 0, process.stderr
        self.whole = left(folder / "whole")

    def begin(self, save, *fault):
        script = ("tests/support/faulty.py", *fault) if fault else ()
        return scripts.Process(*script, *self.command, "--save_dir", save, "--cache_dir", save / "cache")

    def traced(self, save, *what):
        """The ended process, and the lines of its strace."""
        log, process = self.folder / "strace", self.begin(save, "traced")
        tracer = subprocess.Popen(["strace", "-q", "-y", "-s", "0", "-o", log, *what, "-p", str(process.pid)])
        process.wait()
        tracer.wait(60)
        return process, log.read_text().splitlines()

    def kills(self):
        """Every kill that `attempt` can make of an undisturbed run."""
        counts = json.loads((self.folder / "counts").read_text())
        return [("kill", call, i + 1) for call, count in counts.items() for i in range(count)]

    def errors(self):
        """Every error, likewise, of the calls that touch the run's files."""
        save, numbers, found = self.folder / "traced", Counter(), []
        process, lines = self.traced(save, "-e", "trace=" + ",".join(ERRORS))
        assert process.returncode == 0, process.stderr
        for line in lines:
            call = line.partition("(")[0]
            numbers[call] += 1
            if str(save) in line:
                found += [(error, call, numbers[call]) for error in ERRORS.get(call, ())]
        return found

    def attempt(self, save, kind, call, number):
        """Run it with a fault at the call of this number; what came of it, in words.

        kind: "kill" or the error that the call returns
        """
        if kind == "kill":
            process = self.begin(save, f"kill:{call}:{number}")
            killed = process.wait() == -signal.SIGKILL
            assert process.stderr == "" and (killed or process.returncode == 0), process.stderr
            return "killed" if killed else "not reached"
        process, lines = self.traced(save, "-e", f"trace={call}", "-e", f"inject={call}:error={kind}:when={number}")
        failed = [line for line in lines if line.endswith("(INJECTED)")]
        if failed and str(save) not in failed[0]:
            return "elsewhere"  # a file of Python or of the system
        return outcome(process, failed) if failed else "not reached"

    def repair(self, save):
        """The command ends well, with what the undisturbed run has left."""
        process = self.begin(save)
        assert process.wait() == 0 and process.stderr == "", process.stdout + process.stderr
        assert_same(left(save), self.whole)


def outcome(process, why):
    """Of an ended process: "no harm" or "one line"."""
    assert "Traceback" not in process.stdout + process.stderr, (why, process.stderr)
    assert process.returncode in (0, 1, 2) and process.stderr.count("\n") == (process.returncode > 0), (
        why, process.returncode, process.stderr)
    assert process.stderr.startswith("error: " if process.returncode else ""), (why, process.stderr)
    return "one line" if process.returncode else "no harm"


def left(save):
    """All that a run leaves but its times and its scalars: the record, and the content of the teacher's cache."""
    (folder,) = (path.parent for path in save.rglob("result.json"))
    cache = {str(path.relative_to(save)): path.read_bytes() for path in (save / "cache").rglob("*") if path.is_file()
             and not (path.parent.name == "accuracy" and path.suffix == ".partial")}
    return record(folder), sorted(path.name for path in folder.iterdir()), cache


def can_trace():
    return shutil.which("strace") and subprocess.run(["strace", "-qo", "/dev/null", "true"]).returncode == 0


def kind_of(fault):
    return fault[0] in ("disk", "kill"), fault[1:2]


@pytest.fixture(scope="module")
def subject(digits_teacher, tmp_path_factory):
    return Subject(CACHED, digits_teacher, tmp_path_factory.mktemp("faults") / "subject")


def test_after_kills_at_any_call_the_same_command_ends_with_the_same_files(subject, tmp_path):
    # Before the cache's sums, the state after the first epoch, and the last act of all.
    for fault in (("kill", "rename", 4), ("kill", "rename", 6), ("kill", "unlink", 1)):
        assert subject.attempt(tmp_path, *fault) == "killed"
    subject.repair(tmp_path)


@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or not permitted")
def test_after_errors_of_system_calls_the_same_command_ends_with_the_same_files(subject, tmp_path):
    for fault in (("ENOSPC", "fsync", 7), ("EIO", "rename", 6)):
        assert subject.attempt(tmp_path, *fault) == "one line"
    subject.repair(tmp_path)


def test_after_a_full_disk_the_same_command_ends_with_the_same_files(subject, tmp_path):
    with mounts.small_disk(tmp_path / "disk", 2_000_000) as resize:
        process = subject.begin(tmp_path / "disk")
        process.wait()
        assert outcome(process, "") == "one line"
        resize(50_000_000)
        subject.repair(tmp_path / "disk")


@pytest.mark.slow
def test_after_any_faults_the_same_command_ends_with_the_same_files(digits_teacher, tmp_path, capsys):
    """Rounds of one to three faults, drawn at random, for FAULT_SECONDS."""
    deadline, counts, subjects = time.monotonic() + SECONDS, Counter(), []
    for number, command in enumerate((CACHED, STAGED)):
        subject = Subject(command, digits_teacher, tmp_path / f"subject{number}")
        faults = [("disk",), *subject.kills(), *(subject.errors() if can_trace() else ())]
        by_call = itertools.groupby(sorted(faults, key=kind_of), kind_of)
        subjects.append((subject, [list(group) for _, group in by_call]))
    for number in itertools.count():
        if time.monotonic() > deadline:
            break
        (subject, kinds), save = random.choice(subjects), tmp_path / str(number)
        with mounts.small_disk(save, 10**8) as resize:
            for _ in range(random.randint(1, 3)):
                fault = random.choice(random.choice(kinds))
                print(number, *fault, "of", *subject.command)  # shown where it fails
                if fault == ("disk",):
                    resize(shutil.disk_usage(save).used + random.randint(10_000, 3_000_000))
                    process = subject.begin(save)
                    process.wait()
                    came = outcome(process, "a full disk")
                    resize(10**8)
                else:
                    came = subject.attempt(save, *fault)
                counts[" ".join(fault[:2]), came] += 1
            subject.repair(save)
    with capsys.disabled():
        print(f"\n{sum(counts.values())} faults, {number} runs repaired")
        for (fault, came), count in sorted(counts.items()):
            print(f"{count:6}  {fault}: {came}")
