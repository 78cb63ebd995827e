"""What a job of Slurm does. Imported on the node before the run itself starts: nothing heavy in here."""
import os
import shlex
import signal
import subprocess

from submitit.core.utils import DelayedSubmission

from helper.util import children


class SlurmTask:
    """One run, as submitit wants it: called to run or resume it, asked to checkpoint before the time is up.

    The run resumes by itself, so every attempt is the same command. Slurm's signals reach the run directly, being
    sent to all of a job's processes: SIGTERM (preemption, requeue, scancel) makes it save and end. The signal that
    warns of the end of the time is submitit's, which calls `checkpoint` and puts the job back into the queue.
    """

    def __init__(self, argv: list[str], folder: str, log: str, environment: dict[str, str]):
        self.argv, self.folder, self.log, self.environment = argv, folder, log, environment
        self.process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Raises RuntimeError with the exit code of a run that failed."""
        with open(self.log, "ab") as log:
            log.write(f"\n$ {shlex.join(['python', *self.argv[1:]])}\n".encode())
            log.flush()
            self.process = children.start(self.argv, _ignore_warning, cwd=self.folder, stdin=subprocess.DEVNULL,
                                          stdout=log, stderr=subprocess.STDOUT, env=os.environ | self.environment)
            code = self.process.wait()
        if code:
            raise RuntimeError(f"exit code {code}, see {self.log}")

    def checkpoint(self) -> DelayedSubmission:
        """Called in a signal's handler, while __call__ waits: the run saves and ends, and is to be called again."""
        assert self.process is not None
        self.process.terminate()
        # Not Popen.wait, whose lock __call__ holds.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SlurmTask(self.argv, self.folder, self.log, self.environment))


def _ignore_warning():
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
