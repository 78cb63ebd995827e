"""A process that is asked to stop, once or twice."""
import signal
import subprocess
import sys
import time

import pytest

from tests.support import scripts

LISTENS = """
import time
from helper.util.stop import StopRequest, end_at_once
stop = StopRequest(again=end_at_once)
print("listens", flush=True)
while stop.signum is None:
    time.sleep(0.01)
print("asked by", stop.signum, flush=True)
time.sleep(SAVES)
print("saved", flush=True)
"""
# Starts the one above, which ends with it, from the first of many threads.
THREADS = """
import sys, threading, time
from helper.util import children
for _ in range(8):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
children.start([sys.executable, "-c", sys.argv[1]]).wait()
"""


def listening(seconds, *before):
    program = LISTENS.replace("SAVES", str(seconds))
    process = subprocess.Popen([sys.executable, "-c", *before, program], cwd=scripts.ROOT, text=True,
                               stdout=subprocess.PIPE)
    assert process.stdout.readline() == "listens\n"
    return process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_a_later_one_ends_at_once(signum):
    process = listening(60)
    process.send_signal(signum)
    assert process.stdout.readline() == f"asked by {signum}\n"
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM


def test_signals_of_one_moment_are_one_request():
    process = listening(0.5)
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    assert process.stdout.read() == f"asked by {signal.SIGTERM}\nsaved\n" and process.wait() == 0


def test_the_end_of_a_parent_with_threads_is_one_request():
    """Linux sends a child its signal for each of the parent's threads that it is passed on to."""
    for _ in range(4):
        parent = listening(0.2, THREADS)
        parent.kill()
        # To the child's end, which has the same output.
        assert parent.stdout.read() == f"asked by {signal.SIGTERM}\nsaved\n"
        parent.wait()
