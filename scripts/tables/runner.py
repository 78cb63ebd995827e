"""Running the jobs of a table: which is next, which has failed, how far they are, and how they are stopped."""
import fcntl
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from helper.record.records import read_result
from helper.util import children
from helper.util.errors import Interrupted, printable
from helper.util.files import write_bytes
from helper.util.gpu import RUNS_PER_GPU
from helper.util.progress import clock, progress
from helper.util.stop import StopRequest
from scripts.tables.plan import Job


class Logs:
    """What runs print, a file each in SAVE_DIR/logs, and beside it a line for a run that failed."""

    def __init__(self, save_dir: str):
        self.folder = Path(save_dir) / "logs"

    def path(self, job: Job) -> Path:
        return self.folder / f"{job.name}.log"

    def failed(self, name: str) -> str | None:
        """Why the run failed when it was last tried; None where it did not."""
        mark = self.folder / f"{name}.failed"
        return printable(mark.read_text(encoding="utf-8", errors="replace")) if mark.exists() else None

    def mark(self, job: Job, reason: str | None) -> None:
        """Remember why it failed, or with None that it did not."""
        mark = self.folder / f"{job.name}.failed"
        if reason is not None:
            write_bytes(str(mark), (reason + "\n").encode(errors="backslashreplace"))
        else:
            mark.unlink(missing_ok=True)

    def reason(self, job: Job, code: int | None) -> str:
        """Why it failed: its own line of error, else its last one."""
        text = self.path(job).read_text(encoding="utf-8", errors="replace") if self.path(job).exists() else ""
        lines = [line.strip() for line in text.split("\n$ ")[-1].splitlines()[1:] if line.strip()]
        own = [line for line in lines if line.startswith("error: ")]
        if own:
            return own[-1].removeprefix("error: ")
        ended = "" if code is None else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return "; ".join(part for part in (ended, *lines[-1:]) if part) or "it never began"


class Local:
    """Runs jobs on this machine, in as many processes as there are slots.

    slots: for each, what its processes' environment has beside this one's, as {"CUDA_VISIBLE_DEVICES": "1"}
    """

    PATIENCE = 0.1

    def __init__(self, slots: list[dict[str, str]], logs: Logs):
        self.slots, self.logs = slots, logs
        self.running: dict[int, tuple[Job, subprocess.Popen]] = {}

    @property
    def free(self) -> int:
        return len(self.slots) - len(self.running)

    def state(self, job: Job) -> str:
        return "running"

    def start(self, jobs: list[Job]) -> None:
        """Start as many jobs, at most `free`."""
        for job in jobs:
            slot = min(set(range(len(self.slots))) - set(self.running))
            with open(self.logs.path(job), "ab") as log:
                log.write(f"\n$ {job.command}\n".encode())
                log.flush()
                # In a session of its own: Ctrl-C at the terminal reaches this process alone, which passes it on once.
                process = children.start([sys.executable, *job.argv], stdin=subprocess.DEVNULL, stdout=log,
                                         stderr=subprocess.STDOUT, start_new_session=True,
                                         env=os.environ | self.slots[slot])
            self.running[slot] = job, process

    def ended(self) -> list[tuple[Job, int]]:
        """The jobs that have ended since it was last asked, with their exit codes."""
        over = [slot for slot, (_, process) in self.running.items() if process.poll() is not None]
        return [(job, process.returncode) for job, process in map(self.running.pop, over)]

    def stop(self, stop: StopRequest) -> str:
        """Ask every run to save and to end, and wait for them; a second signal ends them at once."""
        processes = [process for _, process in self.running.values()]

        def kill(signum):
            for process in processes:
                process.kill()

        stop.again = kill
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        return f"{len(processes)} running {'run has' if len(processes) == 1 else 'runs have'} been stopped"


def slots(per_device: int | None, jobs: list[Job], gpus: list[str]) -> list[dict[str, str]]:
    """An environment for each run that is to run at a time.

    per_device: runs at a time on a GPU, or on the processor where there is none; None: one a GPU, one a core
    gpus: what CUDA_VISIBLE_DEVICES calls them; empty for the processor
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = per_device or (1 if gpus else cores)
    on_gpus = [{"CUDA_VISIBLE_DEVICES": gpu, RUNS_PER_GPU: str(count)} for _ in range(count) for gpu in gpus]
    found = (on_gpus or [{} for _ in range(count)])[: max(1, len(jobs))]
    if "OMP_NUM_THREADS" in os.environ:
        return found
    return [slot | {"OMP_NUM_THREADS": str(max(1, cores // len(found)))} for slot in found]


def run_jobs(jobs: list[Job], backend, stop: StopRequest) -> dict[str, str]:
    """Run what is not done; the names of the jobs that failed, each with the reason.

    backend: Local or slurm.Slurm
    Raises Interrupted once everything is stopped.
    """
    by_name, display = {job.name: job for job in jobs}, Display(jobs)
    failed: dict[str, str] = {}
    running: list[Job] = []
    waiting = [job for job in jobs if not job.done]

    def end(job, reason):
        if reason is not None:
            failed[job.name] = reason
        backend.logs.mark(job, reason)
        display.ended(job, reason)

    while waiting or running:
        if stop.signum is not None:
            display.say(backend.stop(stop))
            raise Interrupted(stop.signum)
        for job, code in backend.ended():
            running.remove(job)
            if job.done:
                end(job, None)
            elif held(job.folder):  # another process, working on the same table, was quicker
                waiting.append(job)
            else:
                end(job, backend.logs.reason(job, code))
        for job in waiting:
            if job.needs in failed:
                end(job, "its teacher failed")
        # Done: by another process that works on the same table.
        waiting = [job for job in waiting if job.name not in failed and not job.done]
        able = (job for job in waiting if (job.needs is None or by_name[job.needs].done) and not held(job.folder))
        ready = list(itertools.islice(able, backend.free))
        backend.start(ready)
        running += ready
        waiting = [job for job in waiting if job not in ready]
        display.show(running, waiting, failed, backend)
        time.sleep(backend.PATIENCE)
    display.bar.close()
    return failed


def held(folder: str) -> bool:
    """Whether another process trains in this run's folder (as helper.util.files.lock_folder tells)."""
    try:
        with open(os.path.join(folder, ".lock"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def progress_of(job: Job) -> tuple[int, float | None]:
    """How many epochs a run has behind it, of all its phases, and its last test accuracy."""
    try:
        lines = Path(job.folder, "log.jsonl").read_bytes().splitlines()
        return len(lines), json.loads(lines[-1]).get("test_top1") if lines else None
    except (OSError, ValueError):
        return 0, None


class Display:
    """How far a table is: a bar over the epochs of all its runs, and a line for each run that ends."""

    PAUSE = 0.5

    def __init__(self, jobs: list[Job]):
        self.jobs, self.shown = jobs, 0.0
        self.done = {job.name for job in jobs if job.done}
        self.epochs = {job.name: job.epochs if job.name in self.done else progress_of(job)[0] for job in jobs}
        self.bar = progress("epochs", sum(job.epochs for job in jobs), sum(self.epochs.values()))

    def say(self, text: str) -> None:
        print(("\r\033[K" if sys.stdout.isatty() else "") + text, flush=True)

    def ended(self, job: Job, reason: str | None) -> None:
        if reason is not None:
            return self.say(f"failed  {job.title}: {reason}")
        self.done.add(job.name)
        self.epochs[job.name] = job.epochs
        result = read_result(job.folder, bool(job.pairs)) or {}
        self.say(f"{len(self.done):>{len(str(len(self.jobs)))}}/{len(self.jobs)}  {job.title}: last "
                 f"{result['last']['top1']:.2f}, best {result['best']['top1']:.2f}; {clock(result['seconds'])}")

    def show(self, running, waiting, failed, backend) -> None:
        if time.monotonic() - self.shown < self.PAUSE:
            return
        self.shown, states = time.monotonic(), []
        for job in running:
            epoch, top1 = progress_of(job)
            self.epochs[job.name] = epoch
            states.append(f"{job.title}: {backend.state(job)}, epoch {epoch}/{job.epochs}"
                          + (f", test {top1:.2f}" if top1 is not None else ""))
        counts = f"{len(self.done)} done, {len(running)} running, {len(waiting)} left" + (
            f", {len(failed)} failed" if failed else "")
        # What failed is not trained any more.
        self.bar.total = sum(self.epochs[job.name] if job.name in failed else job.epochs for job in self.jobs)
        self.bar.set_postfix_str("; ".join([counts, *states[:3]]), refresh=False)
        self.bar.update(sum(self.epochs.values()) - self.bar.n)
        if sys.stdout.isatty():  # also where no epoch has ended: the time moves
            self.bar.refresh()
