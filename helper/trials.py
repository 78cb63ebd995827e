"""Several trials of one command together on one device: `--trials 1,2,3`.

Each is a process of its own that runs the same command with `--trial`, so that its folder and its results are
those that it would have alone. What they share is the teacher: its accuracy is measured once, and a cache that is
filled or grows is filled by all of them together and mapped into memory once. docs/performance.md says what else
was tried. On the CPU each gets its share of the cores, and as many run at once as there are cores: the bits are those
of a lone run with as many threads (OMP_NUM_THREADS).
"""
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable

from helper.errors import Interrupted, RunError


def conduct(options: Namespace, folder: Callable[[Namespace], str]) -> None:
    """Run the trials of options.trials, print what they print and then their mean and standard deviation.

    folder: the options of one trial -> the folder of its run
    Raises RunError, once all have ended, if one has failed; Interrupted if this process was asked to stop.
    """
    at_once, threads = share(len(options.trials), options.device)
    each = f", {threads} thread{'s' * (threads > 1)} each" if options.device == "cpu" else ""
    print(f"trials    {', '.join(options.trials)}: {at_once} at a time{each}", flush=True)
    team = Team(options.trials, threads)
    codes = team.run(at_once)
    if team.stopped is not None:
        raise Interrupted(team.stopped)
    failed = [trial for trial, code in codes.items() if code != 0]
    if failed:
        raise RunError(f"trial {', '.join(failed)} of {', '.join(options.trials)} failed, see above: mend that, and "
                       "the same command goes on with what is not finished")
    results = []
    for trial in options.trials:
        one = copy.copy(options)
        one.trial = trial
        with open(os.path.join(folder(one), "result.json")) as file:
            results.append(json.load(file))
    print(f"{len(results)} trials: test accuracy last {spread([r['last']['top1'] for r in results])}, "
          f"best {spread([r['best']['top1'] for r in results])}", flush=True)


def share(trials: int, device: str) -> tuple[int, int]:
    """How many trials run at a time, and the threads of each. On a GPU all run at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    at_once = min(trials, cores) if device == "cpu" else trials
    given = os.environ.get("OMP_NUM_THREADS", "")
    return at_once, int(given) if given.isdecimal() and int(given) > 0 else max(1, cores // at_once)


def spread(values: list[float]) -> str:
    """'75.12 ± 0.20': mean and sample standard deviation; the mean alone of a single value."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


class Team:
    """The processes of several trials of the command that this process was started with.

    stopped: the signal that asked to stop, None if there was none
    """

    def __init__(self, trials: list[str], threads: int):
        self.command = [sys.executable, *without(sys.argv, "--trials")]
        self.waiting, self.running, self.codes = list(trials), {}, {}
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self.stopped, self.said, self.printing = None, set(), threading.Lock()

    def run(self, at_once: int) -> dict[str, int]:
        """The exit code of each trial, once all have ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        lanes = [threading.Thread(target=self._lane) for _ in range(at_once)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        return self.codes

    def _lane(self):
        """Run one trial after the other until none is waiting."""
        while True:
            with self.printing:
                if not self.waiting or self.stopped is not None:
                    return
                trial = self.waiting.pop(0)
                # A session of its own: a Ctrl-C reaches it through this process, once.
                process = self.running[trial] = subprocess.Popen(
                    [*self.command, "--trial", trial], env=self.environment, text=True, start_new_session=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for line in process.stdout:
                self._print(trial, line.rstrip())
            self.codes[trial] = process.wait()
            del self.running[trial]

    def _print(self, trial, line):
        """What several trials say alike, as they do at their start, is printed once."""
        with self.printing:
            if line not in self.said:
                print(f"[{trial}] {line}", flush=True)
                self.said.add(line)

    def _stop(self, signum, frame):
        self.stopped = signum
        for process in list(self.running.values()):
            process.send_signal(signum)


def without(argv: list[str], flag: str) -> list[str]:
    """The command line without `flag` and its value, given as one word or two."""
    kept, words = [], iter(argv)
    for word in words:
        if word == flag:
            next(words)
        elif not word.startswith(flag + "="):
            kept.append(word)
    return kept
