"""Training processes that do not outlive the process that starts them.

python -m helper.util.children train_student.py --path_t ...    # the same for a shell script that starts them
"""
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence


def start(argv: Sequence[str | os.PathLike], prepare: Callable[[], object] = lambda: None,
          **options) -> subprocess.Popen:
    """Start a process that gets SIGTERM, at which a run saves and ends, when this one ends in whatever way.

    prepare: called in the child before its program starts; options: as of subprocess.Popen
    """
    parent = os.getpid()

    def before():
        prepare()
        end_with(parent)

    return subprocess.Popen(argv, preexec_fn=before, **options)


def end_with(parent: int) -> None:
    """From here on this process gets SIGTERM when `parent`, which has started it, ends."""
    if sys.platform == "linux":  # elsewhere a killed parent leaves its children running
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG; kept by exec
        if os.getppid() != parent:  # it ended before the call
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    end_with(os.getppid())
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
