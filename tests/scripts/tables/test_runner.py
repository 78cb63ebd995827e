"""How a table's runs are started, stopped, resumed and retried, shown by runs that take no time."""
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helper.util.errors import Interrupted
from scripts.tables.plan import Job
from scripts.tables.runner import Display, Local, Logs, held, progress_of, run_jobs, slots
from tests.support import scripts
from tests.support.tables import wait_for

RUNNER = """
import sys
import time
sys.path.insert(0, {root!r})
from helper.util.errors import guarded
from scripts.tables.runner import Job, Local, Logs, run_jobs
from helper.util.stop import StopRequest
jobs = [Job(*job, settings={{}}, pairs=("a->b",), method="kd", trial=str(i)) for i, job in enumerate({jobs!r})]
logs = Logs({save!r})
logs.folder.mkdir(exist_ok=True)
guarded(lambda: run_jobs(jobs, Local([{{}}] * 2, logs), StopRequest()))
"""


def run_all(jobs, tmp_path, stop, count=2):
    logs = Logs(str(tmp_path))
    logs.folder.mkdir(exist_ok=True)
    return run_jobs(jobs, Local([{}] * count, logs), stop)


def test_all_runs_are_run_teachers_first_and_no_more_at_a_time_than_asked(small, tmp_path, stop, capsys):
    jobs = [small("teacher", epochs=3), *(small(f"s{i}", needs="teacher") for i in range(4))]
    assert run_all(jobs, tmp_path, stop) == {}
    assert all(job.done for job in jobs)
    started = [json.loads(line) for line in (tmp_path / "runs" / "s0" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in started] == [1, 2]
    times = {job.name: os.path.getmtime(os.path.join(job.folder, "result.json")) for job in jobs}
    begun = min(os.stat(tmp_path / "logs" / f"s{i}.log").st_ctime for i in range(4))
    assert times["teacher"] <= begun
    assert max(times.values()) == max(times["s2"], times["s3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0] == "1/5  teacher teacher: last 1.00, best 2.00; 0:00:03"


def test_a_failed_run_stops_no_other_and_is_tried_again(small, tmp_path, stop, capsys):
    cause = tmp_path / "cause"
    cause.write_text("the loss is not finite")
    jobs = [small("teacher"), small("bad", fails_with=str(cause)), small("good"),
            small("orphan", needs="lost"), small("lost", fails_with=str(cause))]
    failed = run_all(jobs, tmp_path, stop)
    assert failed == {"bad": "the loss is not finite", "lost": "the loss is not finite", "orphan": "its teacher failed"}
    assert [job.name for job in jobs if job.done] == ["teacher", "good"]
    assert "failed  a->b bad trial 1: the loss is not finite" in capsys.readouterr().out
    logs = Logs(str(tmp_path))
    assert {job.name: why for job in jobs if (why := logs.failed(job.name))} == failed
    cause.unlink()
    assert run_all(jobs, tmp_path, stop) == {} and all(job.done for job in jobs)
    assert not any(Logs(str(tmp_path)).failed(job.name) for job in jobs)
    assert (tmp_path / "logs" / "good.log").read_text().count("$ python") == 1
    assert (tmp_path / "logs" / "bad.log").read_text().count("$ python") == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_stopped_in_any_way_no_run_is_left_and_all_continue(small, name, tmp_path, stop):
    """The process that runs them is another: it is sent the signal, and its runs must end too, having saved."""
    jobs = [small(f"s{i}", epochs=40, seconds=0.03) for i in range(3)]
    plain = [(job.name, job.folder, job.argv, job.epochs) for job in jobs]
    (tmp_path / "runner.py").write_text(RUNNER.format(root=str(scripts.ROOT), save=str(tmp_path), jobs=plain))
    runner = scripts.Process(str(tmp_path / "runner.py"))
    wait_for(lambda: all(progress_of(job)[0] >= 2 for job in jobs[:2]))
    runner.signal(getattr(signal, name))
    code = runner.wait()
    assert code == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9}[name]
    wait_for(lambda: not any(held(job.folder) for job in jobs))
    before = [progress_of(job)[0] for job in jobs]
    assert before[0] < 40 and before[1] < 40 and before[2] == 0
    if name != "SIGKILL":
        assert "2 running runs have been stopped" in runner.stdout
        assert runner.stderr == f"error: stopped by {name}; the same command continues from the last finished epoch\n"
    # The rest of the epochs, quicker.
    quick = [Job(j.name, j.folder, (*j.argv[:2], json.dumps({"epochs": 40, "seconds": 0})), 40, {}, pairs=("a->b",))
             for j in jobs]
    assert run_all(quick, tmp_path, stop) == {}
    assert all(progress_of(job)[0] == 40 for job in jobs)  # no epoch was trained twice
    assert f"after {before[0]}" in (tmp_path / "logs" / "s0.log").read_text()


def test_a_second_signal_kills_runs_that_do_not_end(tmp_path):
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    plain = [("s", str(tmp_path / "run"), ("-c", deaf), 1)]
    (tmp_path / "runner.py").write_text(RUNNER.format(root=str(scripts.ROOT), save=str(tmp_path), jobs=plain))
    runner = scripts.Process(str(tmp_path / "runner.py"))
    log = tmp_path / "logs" / "s.log"
    wait_for(lambda: log.exists() and "deaf\n" in log.read_text())
    for _ in range(2):
        runner.signal(signal.SIGTERM)
        time.sleep(1.5)
    assert runner.wait(30) == 143 and "1 running run has been stopped" in runner.stdout


def test_a_run_that_another_process_holds_is_waited_for(small, tmp_path, stop):
    job = small("s", epochs=8, seconds=0.05)
    other = subprocess.Popen([sys.executable, *job.argv], stdout=subprocess.DEVNULL)
    wait_for(lambda: held(job.folder))
    assert run_all([job], tmp_path, stop) == {}
    assert other.wait() == 0 and not (tmp_path / "logs" / "s.log").exists()


def test_interrupted_before_anything_began(small, tmp_path, stop):
    stop.signum = signal.SIGTERM
    with pytest.raises(Interrupted):
        run_all([small("s")], tmp_path, stop)


@pytest.mark.parametrize("per_device, jobs, gpus, threads, found", [
    (2, 9, ["0", "3"], "5", [{"CUDA_VISIBLE_DEVICES": gpu, "RUNS_PER_GPU": "2"} for gpu in ("0", "3", "0", "3")]),
    (None, 9, ["1"], "5", [{"CUDA_VISIBLE_DEVICES": "1", "RUNS_PER_GPU": "1"}]),
    (3, 2, [], "5", [{}, {}]), (3, 0, [], "5", [{}]),
    (1, 9, [], None, [{"OMP_NUM_THREADS": "8"}]), (3, 9, [], None, [{"OMP_NUM_THREADS": "2"}] * 3),
    (None, 9, [], None, [{"OMP_NUM_THREADS": "1"}] * 8)])
def test_each_run_has_its_share_of_the_machine(per_device, jobs, gpus, threads, found, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:  # what the user has set stays
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert slots(per_device, [None] * jobs, gpus) == found


@pytest.mark.parametrize("damage", ["", "{}", "[]", "{", '{"last": {"top1": 1}}'])
def test_a_damaged_result_is_no_result(small, damage):
    job = small("s")
    os.makedirs(job.folder)
    Path(job.folder, "result.json").write_text(damage)
    assert not job.done


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("live", [True, False])
def test_the_display_shows_how_far_all_runs_are(live, small, tmp_path, stop, monkeypatch):
    out = Terminal() if live else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(Display, "PAUSE", 0)
    monkeypatch.setattr("helper.util.progress.PAUSE", 0.01)
    jobs = [small("teacher"), *(small(f"s{i}", needs="teacher", seconds=0.2) for i in range(2))]
    assert run_all(jobs, tmp_path, stop) == {}
    text = out.getvalue()
    assert re.search(r"epochs: .*[2-5]/6.*1 done, 2 running" if live else
                     r"epochs: \d+%, [23] of 6.* left, 1 done, 2 running, 0 left; a->b s0 trial 1: running, ep", text)
    assert re.search("(?m)^.*3/3  a->b s[01] trial 1: last 1.00, best 2.00", text)
