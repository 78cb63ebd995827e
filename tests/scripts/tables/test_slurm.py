"""Tables on a cluster: a real Slurm that the tests start, with runs that are killed, requeued, and fail.

The runs are conftest.py's, which take no time, save at SIGTERM and continue from what was saved.
"""
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from helper.util.errors import Interrupted, UsageError
from scripts.tables.runner import Logs, progress_of, run_jobs
from scripts.tables.slurm import Slurm
from tests.support import local_slurm, scripts
from tests.support.tables import GOOD, flat, wait_for

pytestmark = pytest.mark.skipif(local_slurm.missing() is not None, reason=str(local_slurm.missing()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    slurm = local_slurm.LocalSlurm(tmp_path_factory.mktemp("slurm"))
    yield slurm
    slurm.stop()
    assert all(process.returncode is not None for process in slurm.started)


@pytest.fixture
def slurm(cluster, monkeypatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    monkeypatch.setattr(Slurm, "PATIENCE", 0.2)
    return cluster


def backend(folder, **parameters):
    return Slurm(**({"partition": "main", "minutes": 5, "gpus": 0, "cpus": 1, "logs": Logs(str(folder))} | parameters))


def ids(slurm):
    return slurm.run("squeue", "-h", "-r", "-o", "%i").split()


class Meanwhile(threading.Thread):
    """Runs `act` beside the test; what it raises, the test raises when it joins."""

    def __init__(self, act):
        super().__init__(daemon=True)
        self.act, self.error = act, None
        self.start()

    def run(self):
        try:
            self.act()
        except BaseException as error:
            self.error = error

    def join(self):
        super().join(60)
        if self.error:
            raise self.error


@pytest.mark.parametrize("how", ["requeue", "time is up"])
def test_a_killed_run_is_requeued_and_continues_and_a_failed_one_stops_no_other(
        how, small, slurm, tmp_path, stop):
    cause = tmp_path / "cause"
    cause.write_text("the loss is not finite")
    long, quick, bad = small("long", epochs=60, seconds=0.05), small("quick"), small("bad", fails_with=str(cause))

    def kill():
        wait_for(lambda: progress_of(long)[0] >= 3)
        array = json.loads((tmp_path / "logs" / "slurm" / "queued.json").read_text())["long"]
        if how == "requeue":  # as preemption does it
            slurm.run("scontrol", "requeue", array)
        else:  # what Slurm sends before the end of the job's time
            slurm.run("scancel", "--signal=USR2", array)
        wait_for(lambda: slurm.run("squeue", "-h", "-r", "-j", array, "-o", "%T").strip() == "PENDING")
        seen.append(progress_of(long)[0])
        # Slurm waits for two minutes; at once, the job's old credential would still be revoked.
        slurm.run("scontrol", "update", f"JobId={array}", "StartTime=now+2")

    seen, logs = [], Logs(str(tmp_path))
    jobs = [long, quick, bad]
    killer = Meanwhile(kill)
    failed = run_jobs(jobs, backend(tmp_path), stop)
    killer.join()
    assert failed == {"bad": "the loss is not finite"}
    assert long.done and quick.done and not bad.done
    text = logs.path(long).read_text()
    assert 3 <= seen[0] < 60 and text.count("$ python") == 2 and f"after {seen[0]}" in text
    assert progress_of(long)[0] == 60  # no epoch was trained twice
    assert "threads 1" in text
    assert (tmp_path / "logs" / "slurm").exists() and ids(slurm) == []


def test_left_alone_the_jobs_stay_queued_and_the_same_command_finds_them(
        small, slurm, tmp_path, stop, capsys):
    job, logs = small("long", epochs=30, seconds=0.1), Logs(str(tmp_path))
    leaving = Meanwhile(lambda: (wait_for(lambda: progress_of(job)[0] >= 1), os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(Interrupted):
        run_jobs([job], backend(tmp_path), stop)
    leaving.join()
    (number,) = ids(slurm)
    assert f"1 jobs stay in Slurm's queue, and the same command finds them there; scancel {number}" in (
        capsys.readouterr().out)
    stop.signum = None
    assert run_jobs([job], backend(tmp_path), stop) == {} and job.done
    assert logs.path(job).read_text().count("$ python") == 1


def test_what_slurm_refuses_is_said_in_its_own_words(small, slurm, tmp_path):
    with pytest.raises(UsageError, match=r"Slurm refuses the jobs: .*[Ii]nvalid partition"):
        backend(tmp_path, partition="nowhere").start([small("s")])
    with pytest.raises(UsageError, match="Slurm refuses the jobs"):
        backend(tmp_path, gpus=1).start([small("s")])


def test_the_scripts_flag_submits_the_students(slurm, teachers, tmp_path):
    """The whole way, once; with a student that train_student.py refuses, so that it takes no time."""
    flags = GOOD | {"--methods": "fsp", "--pairs": "resnet14:resnet8x4", "--teachers": str(teachers),
                    "--save_dir": str(tmp_path), "--slurm": "main", "--gpus": "0", "--cpus": "1"}
    # Not by scripts.run, whose processes have the environment of its own start.
    run = subprocess.run([sys.executable, "scripts/reproduce.py", *flat(flags)], cwd=scripts.ROOT, capture_output=True,
                         text=True)
    assert "on Slurm's partition main: 0 GPUs and 1 cores a job" in run.stdout
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "1 of 1 runs failed" in run.stderr
    assert "failed  resnet14->resnet8x4 fsp trial 1: fsp needs equal channels" in run.stdout


def test_without_slurm_it_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="--slurm: sbatch, srun, squeue cannot be found"):
        backend(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install -r requirements-extras\.txt"):
        backend(tmp_path)
