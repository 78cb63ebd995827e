"""A Slurm of this machine alone: controller, node and munge in a folder, for tests and for trying things.

python tests/support/local_slurm.py DIR     # starts it, prints how to use it, and stops it at Ctrl-C

Needs Debian's slurm-wlm and munge, and root (the node starts jobs for their users).
"""
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sinfo", "sbatch", "srun", "squeue", "scontrol")
CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
ReturnToService=2
KillWait=5
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"no Slurm here ({', '.join(absent)} missing): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    return None


class LocalSlurm:
    """A running Slurm with one node and the partition 'main'; `environment` is what its commands need."""

    def __init__(self, folder: Path, cpus: int = 2):
        self.folder, self.host = Path(folder), socket.gethostname()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        (self.folder / "spool").mkdir(exist_ok=True)
        conf = self.folder / "slurm.conf"
        conf.write_text(CONF.format(host=self.host, ports=_free_ports(2), folder=self.folder, cpus=cpus))
        self.environment = os.environ | {"SLURM_CONF": str(conf), "PATH": _path()}
        self.started: list[subprocess.Popen] = []
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self):
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # In the foreground, so that they are this process's to stop. --force: as root, and in a folder of /tmp.
        self._daemon("munged", "--foreground", "--force", "--num-threads=2",
                     *(f"--{what}={self.folder}/munge.{end}" for what, end in (
                         ("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("seed-file", "seed"),
                         ("log-file", "log"))))
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D", "-N", self.host)
        self._until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T"), "the node")

    def _daemon(self, *command):
        with open(self.folder / f"{command[0]}.out", "w") as out:
            self.started.append(subprocess.Popen(command, env=self.environment, stdout=out, stderr=out))

    def _until(self, is_up, what, timeout=30):
        deadline = time.monotonic() + timeout
        while not is_up():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not come up in {timeout} s: see {self.folder}")
            time.sleep(0.1)

    def run(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def stop(self) -> None:
        """Cancel what is left and end what was started."""
        if len(self.started) == 3:
            self.run("scancel", "--partition=main")
            deadline = time.monotonic() + 15
            while self.run("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.1)
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()


def _path():
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian has the daemons


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def main():
    why_not = missing()
    if why_not or len(sys.argv) != 2:
        sys.exit(f"error: {why_not or 'give a folder'}")
    slurm = LocalSlurm(Path(sys.argv[1]).resolve())
    print(f"export SLURM_CONF={slurm.environment['SLURM_CONF']}    # partition main; Ctrl-C ends it", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        slurm.stop()


if __name__ == "__main__":
    main()
