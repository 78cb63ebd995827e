"""Running the entry scripts as a user does: real processes, real files."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@lru_cache
def _forker():
    """The process of forker.py, which ends with this one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(Path(__file__).parent / "forker.py")], env=environment, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(command):
    forker = _forker()
    forker.stdin.write(json.dumps(command) + "\n")
    forker.stdin.flush()
    return json.loads(forker.stdout.readline())


class Process:
    """A running `python SCRIPT FLAGS` in the repository's root, or in another `root`.

    environment: what it has beside this process's
    """

    def __init__(self, script, *flags, root=ROOT, environment=None):
        self.folder = tempfile.TemporaryDirectory(prefix="ikd-test-")  # there as long as this object is
        self.out, self.err = (os.path.join(self.folder.name, name) for name in ("out", "err"))
        self.pid = _ask({"root": str(root), "argv": [script, *(str(flag) for flag in flags)],
                         "out": self.out, "err": self.err, "environment": environment or {}})

    def signal(self, signum):
        os.kill(self.pid, signum)

    def until(self, text, timeout=120):
        """Wait until it has printed `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.stdout:
            assert time.monotonic() < deadline, f"no '{text}' in {timeout} s:\n{self.stdout}\n{self.stderr}"
            time.sleep(0.02)

    def wait(self, timeout=240):
        """Its exit code, negative for a signal; a process that outlasts `timeout` seconds is killed."""
        self.returncode = _ask({"wait": self.pid, "timeout": timeout})
        if self.returncode is None:
            self.signal(signal.SIGKILL)
            self.returncode = _ask({"wait": self.pid, "timeout": 10})
        return self.returncode

    @property
    def stdout(self):
        return Path(self.out).read_text() if os.path.exists(self.out) else ""

    @property
    def stderr(self):
        return Path(self.err).read_text() if os.path.exists(self.err) else ""


def run(script, *flags, root=ROOT):
    """The finished process, with returncode, stdout and stderr."""
    process = Process(script, *flags, root=root)
    process.wait()
    return process


def succeed(script, *flags, root=ROOT):
    """As run, and it must exit 0; what went wrong is shown."""
    process = run(script, *flags, root=root)
    assert process.returncode == 0, f"{process.stdout}\n{process.stderr}"
    return process


def read_log(folder):
    """The lines of log.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def only(folder, pattern="*"):
    """The one entry of a folder that fits."""
    (found,) = Path(folder).glob(pattern)
    return found
