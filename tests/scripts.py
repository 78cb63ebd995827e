"""Running the entry scripts as a user does."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def start(script, *flags, root=ROOT, **popen):
    """The process of `python SCRIPT FLAGS`, in the repository's root."""
    command = [sys.executable, script, *(str(flag) for flag in flags)]
    return subprocess.Popen(command, cwd=root, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **popen)


def run(script, *flags, root=ROOT, timeout=120):
    """The finished process, with returncode, stdout and stderr."""
    process = start(script, *flags, root=root)
    try:
        process.stdout, process.stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process


def succeed(script, *flags, **options):
    """As run, and it must exit 0; what went wrong is shown."""
    process = run(script, *flags, **options)
    assert process.returncode == 0, f"{process.stdout}\n{process.stderr}"
    return process


def read_log(folder):
    """The lines of log.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def only(folder, pattern="*"):
    """The one entry of a folder that fits."""
    (found,) = Path(folder).glob(pattern)
    return found


SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}
