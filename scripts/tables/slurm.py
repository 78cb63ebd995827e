"""Running the jobs of a table on a cluster, through Slurm by submitit."""
import contextlib
import getpass
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from helper.util.errors import UsageError
from helper.util.files import write_json
from helper.util.stop import StopRequest
from scripts.tables.plan import ROOT, Job
from scripts.tables.runner import Logs


class Slurm:
    """Runs jobs as Slurm's job arrays. They outlive this process: the ids are kept in a file, and found again.

    A job that is preempted, or requeued for another reason, is brought back by Slurm, one whose time is up by
    submitit; its run resumes from its last saved epoch. Accounts, qualities of service and the like are taken by
    sbatch from its environment (SBATCH_ACCOUNT, SBATCH_QOS, ...).

    partition, minutes, gpus, cpus: of each job
    Raises UsageError where there is no Slurm, or no submitit.
    """

    PATIENCE = 1.0
    # How often one job may run out of its time and be put back.
    TIMES_UP = 1000
    # Slurm's default MaxArraySize is 1001.
    ARRAY = 1000

    def __init__(self, partition: str, minutes: int, gpus: int, cpus: int, logs: Logs):
        try:
            import submitit
        except ImportError:
            raise UsageError("--slurm needs submitit: pip install -r requirements-extras.txt") from None
        absent = [program for program in ("sbatch", "srun", "squeue") if shutil.which(program) is None]
        if absent:
            raise UsageError(f"--slurm: {', '.join(absent)} cannot be found: run this where Slurm's commands are")
        self.logs, self.cpus = logs, cpus
        folder = Path(os.path.abspath(logs.folder / "slurm"))
        folder.mkdir(parents=True, exist_ok=True)
        self.name = f"table-{hashlib.sha256(bytes(folder)).hexdigest()[:8]}"  # tells our jobs from all others
        self.executor = submitit.SlurmExecutor(folder, max_num_timeout=self.TIMES_UP)
        self.executor.update_parameters(
            job_name=self.name, partition=partition, time=minutes, cpus_per_task=cpus,
            signal_delay_s=min(90, 20 * minutes), additional_parameters={"requeue": True},
            setup=[f"export PYTHONPATH={ROOT}${{PYTHONPATH:+:$PYTHONPATH}}"],
            **({"gpus_per_node": gpus} if gpus else {}))
        self.queue = folder / "queued.json"
        self.ids: dict[str, str] = json.loads(self.queue.read_text()) if self.queue.exists() else {}
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, str] = {}
        self._ask()

    @property
    def free(self) -> int:
        return sys.maxsize  # the queue is Slurm's

    def state(self, job: Job) -> str:
        return "queued" if self.states.get(self.ids.get(job.name, "")) == "PENDING" else "running"

    def start(self, jobs: list[Job]) -> None:
        """Submit these as an array, but for those that an earlier process has submitted.

        Raises UsageError with Slurm's own words where it refuses.
        """
        from scripts.tables.slurm_task import SlurmTask
        self.jobs |= {job.name: job for job in jobs}
        new = [job for job in jobs if self.ids.get(job.name) not in self.states]
        threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(self.cpus)}
        for i in range(0, len(new), self.ARRAY):
            part = new[i : i + self.ARRAY]
            tasks = [SlurmTask([sys.executable, *job.argv], os.getcwd(), str(self.logs.path(job).resolve()), threads)
                     for job in part]
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    submitted = self.executor.submit_array(tasks)
            except Exception as error:  # submitit's own, and what it lets through
                raise UsageError(f"Slurm refuses the jobs: {str(error).strip().splitlines()[-1]}") from None
            for job, found in zip(part, submitted, strict=True):
                self.ids[job.name] = found.job_id
                self.states[found.job_id] = "PENDING"
            write_json(str(self.queue), self.ids)

    def ended(self) -> list[tuple[Job, int | None]]:
        """The jobs that are no longer in Slurm's queue; their exit codes are not known."""
        if self.jobs:
            self._ask()
        over = [name for name in self.jobs if self.ids[name] not in self.states]
        return [(self.jobs.pop(name), None) for name in over]

    def stop(self, stop: StopRequest) -> str:
        """Leave the jobs where they are."""
        ids = sorted({self.ids[name].split("_")[0] for name in self.jobs})
        return (f"{len(self.jobs)} jobs stay in Slurm's queue, and the same command finds them there"
                + (f"; scancel {' '.join(ids)} ends them" if ids else ""))

    def _ask(self):
        """Which jobs are queued or running; those of before where Slurm does not answer."""
        try:
            answer = subprocess.run(["squeue", "-h", "-r", "-u", getpass.getuser(), "-n", self.name, "-o", "%i %T"],
                                    capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return
        if answer.returncode == 0:
            self.states = dict(line.split() for line in answer.stdout.splitlines())
