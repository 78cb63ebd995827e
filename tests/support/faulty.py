"""Runs a script with a fault: python tests/support/faulty.py FAULT SCRIPT FLAGS...

FAULT is one of
    kill:CALL:NUMBER  SIGKILL just before the script's NUMBER-th rename, fsync or unlink
    count:FILE        no fault: how many of each call there were goes to FILE
    traced            begins once strace is attached, which makes system calls fail
"""
import ctypes
import json
import os
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path

CALLS = {"rename": ("rename", "replace"), "fsync": ("fsync",), "unlink": ("unlink", "remove", "rmdir")}
seen: Counter[str] = Counter()


def watch(call, name, kill, number):
    plain = getattr(os, name)

    def watched(*args, **kwargs):
        seen[call] += 1
        if (call, seen[call]) == (kill, number):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **kwargs)

    setattr(os, name, watched)


def await_tracer():
    ctypes.CDLL(None).prctl(0x59616D61, -1)  # PR_SET_PTRACER: any process may, where the system restricts it
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        time.sleep(0.005)


fault, *own = sys.argv[1].split(":")
sys.argv = sys.argv[2:]
if fault == "traced":
    await_tracer()
else:
    kill, number = (own[0], int(own[1])) if fault == "kill" else ("", 0)
    for call, names in CALLS.items():
        for name in names:
            watch(call, name, kill, number)
sys.path.insert(0, os.getcwd())
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if fault == "count":
        Path(own[0]).write_text(json.dumps(seen))
