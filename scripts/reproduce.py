"""Make a table: pairs x methods x trials, each run one command line of train_student.py, and a report of them.

python scripts/reproduce.py --table same
python scripts/reproduce.py --pairs resnet56:resnet20 --methods ce,kd,kd+IKD,dkd,dkd+IKD --trials 1,2,3
python scripts/reproduce.py --pairs resnet56:resnet20 --methods kd,dkd+IKD --grid "avg=0.5,1,2 kd_T=2,4"
python scripts/reproduce.py --pairs resnet14:resnet8 --methods ce,kd --dataset digits --epochs 4 --teachers train \
    --save_dir save/small

The same command again resumes what is unfinished, leaves what is done, and tries again what failed.
"""
import argparse
import os
import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

import torch

import dataset
from dataset import LOADERS
from distiller_zoo import METHODS
from helper.cli import Parser
from helper.record import published
from helper.util import children
from helper.util.arguments import nonnegative_int, positive_int, trial_name
from helper.util.errors import RunError, UsageError, guarded
from helper.util.files import write_json
from helper.util.stop import StopRequest
from models import load_model
from scripts.tables.plan import Table, default_recipe, grid_of, pair_of, plan, reserved, script
from scripts.tables.report import write_report
from scripts.tables.runner import Local, Logs, run_jobs, slots
from scripts.tables.slurm import Slurm


def main():
    o = options_of(sys.argv[1:])
    table = plan(o)
    to_fetch = [teacher for teacher in table.teachers if teacher.to_fetch]
    if o.dry_run:
        return print("\n".join(dry_run(table, to_fetch, o)))
    data = dataset.load(o.dataset, o.data_dir)  # fetched here, once, and not by all runs at the same time
    check_classes(table, len(data.classes), o)
    stop = StopRequest()
    logs = Logs(o.save_dir)
    for folder in (logs.folder, o.report):
        os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(o.report, "table.json"), table.record())
    say_plan(table, logs, o)
    unfetched = fetch(to_fetch, o)
    jobs = [job for job in table.jobs if job.settings.get("path_t") not in unfetched]
    failed = run_jobs(jobs, backend_of(jobs, logs, o), stop)
    finish(table, failed, len(table.jobs) - len(jobs), o)


def options_of(argv):
    """The resolved options. Raises UsageError."""
    parser = Parser(prog="reproduce.py", description="Make a table of pairs x methods x trials, and its report.")
    group = parser.add_argument_group("the table")
    group.add_argument("--table", default="", choices=["", *published.TABLES], metavar="NAME",
                       help="pairs and methods of a published table: " + ", ".join(
                           f"{name} ({table['title']})" for name, table in published.TABLES.items()))
    group.add_argument("--pairs", type=_list(pair_of), metavar="T:S,T:S",
                       help="teacher:student, ...; a teacher may be a checkpoint, FILE.pth:student")
    group.add_argument("--methods", type=_list(str), metavar="LIST",
                       help="ce (cross-entropy alone) or any of " + ", ".join(METHODS) + "; each with +KD, +IKD or "
                            "both added, as in ce,kd,dkd+IKD,crd+KD")
    group.add_argument("--trials", type=_list(trial_name), default="1,2,3", metavar="LIST", help="trials")
    group.add_argument("--grid", type=grid_of, default="", metavar="TEXT",
                       help='values of any flags of train_student.py, a row for each combination, as in '
                            '--grid "avg=0.5,1,2 intra_T=1,4 kd_T=2,4"; a method takes those that it reads, a method '
                            "with +IKD also avg and intra_T (6.5 and 1, published for resnet32x4:resnet8x4 with dkd "
                            "alone)")
    group.add_argument("--epochs", type=positive_int, default=default_recipe().epochs, metavar="N",
                       help="a shorter or longer schedule: decay, warm-up and first stages move in proportion")
    group.add_argument("--dataset", default="cifar100", choices=LOADERS, metavar="NAME", help="data set")
    group.add_argument("--data_dir", default="./data", metavar="DIR", help="where data is, or is fetched to")
    group.add_argument("--flags", type=shlex.split, default="", metavar="TEXT",
                       help='further flags of train_student.py, as --flags "--fast"')
    group = parser.add_argument_group("teachers")
    group.add_argument("--teachers", nargs="+", default=["fetch"], metavar="FROM",
                       help="fetch: the published ones; train: by train_teacher.py; FILE; a folder of checkpoints; or "
                            "NAME=FILE for single ones (default fetch)")
    group.add_argument("--teacher_epochs", type=positive_int, metavar="N",
                       help="of teachers that are trained (default as --epochs)")
    group.add_argument("--teacher_flags", type=shlex.split, default="", metavar="TEXT",
                       help="further flags of train_teacher.py")
    group = parser.add_argument_group("running")
    group.add_argument("--save_dir", default="./save", metavar="DIR", help="where runs, logs and the report go")
    group.add_argument("--report", metavar="DIR", help="where the report goes (default SAVE_DIR/report, "
                                                       "SAVE_DIR/report_NAME with --table)")
    group.add_argument("--jobs", type=positive_int, metavar="K",
                       help="runs at a time, on each GPU where there are any (default: one a GPU, one a core)")
    group.add_argument("--slurm", metavar="PARTITION",
                       help="run on a cluster: job arrays of this partition, through Slurm by submitit")
    group.add_argument("--time", type=_minutes, default="1-0:00:00", metavar="TIME",
                       help="with --slurm, of a job, as sbatch has it: minutes, H:MM:SS or D-H:MM:SS; a run that needs "
                            "more continues in a further job (default 1-0:00:00)")
    group.add_argument("--gpus", type=nonnegative_int, default=1, metavar="N", help="with --slurm, of a job")
    group.add_argument("--cpus", type=positive_int, default=4, metavar="N", help="with --slurm, of a job")
    group.add_argument("--dry_run", action="store_true", help="print the command lines, and do nothing")
    group.add_argument("--significance", action="store_true", help="the report compares methods over common trials")
    o = parser.parse_args(_joined(argv))
    reserved(o.flags, "--flags")
    reserved(o.teacher_flags, "--teacher_flags")
    if o.report is None:
        o.report = os.path.join(o.save_dir, f"report_{o.table}" if o.table else "report")
    return o


def _joined(argv):
    """As argv, with --flags "--fast" as one argument: argparse would take its text for a flag of this script."""
    joined, own = [], ("--flags", "--teacher_flags")
    for i, text in enumerate(argv):
        if text not in own or i + 1 == len(argv):
            joined.append(f"{argv[i - 1]}={text}" if i and argv[i - 1] in own else text)
    return joined


def _list(kind):
    def parse(text):
        return list(dict.fromkeys(kind(part) for part in text.split(",")))

    parse.__name__ = "list"
    return parse


def _minutes(text):
    """sbatch's time in minutes, at least 1: '90', '1:30:00', '1-0:00:00'."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)|(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time such as 90 (minutes), 1:30:00 or 1-0:00:00")
    days, hours, minutes, seconds, alone = (int(part or 0) for part in found.groups())
    return max(1, (days * 24 + hours) * 60 + minutes + (seconds > 0) + alone)


def dry_run(table: Table, to_fetch, o) -> list[str]:
    """Command lines that can be run by hand, teachers first; what is not published stands above as a comment."""
    lines = [f"# {table.title}"]
    if to_fetch:
        lines.append(shlex.join(fetch_command(to_fetch, o)))
    for job in table.jobs:
        lines += [*(f"# {remark}" for remark in job.remarks), job.command]
    return lines


def check_classes(table, classes, o):
    """Raises UsageError where a teacher that is there already has another number of classes than the data."""
    for teacher in table.teachers:
        if os.path.exists(teacher.path):
            found = load_model(teacher.path)[1].num_classes
            if found != classes:
                raise UsageError(f"{teacher.path} is a teacher of {found} classes, {o.dataset} has {classes}: "
                                 f"give teachers trained on {o.dataset}")


def say_plan(table, logs, o):
    """What will be done, before it is done."""
    done, again = [job for job in table.jobs if job.done], [job for job in table.jobs if logs.failed(job.name)]
    print(table.title)
    print(f"{len(table.jobs)} runs: {len(table.jobs) - len(table.students)} teachers, {len(table.students)} students; "
          f"{len(done)} done before" + (f", {len(again)} failed before and are tried again" if again else ""))
    for job in again:
        print(f"  again: {job.title}")
    for method, remark in dict.fromkeys((job.method, remark) for job in table.students for remark in job.remarks):
        print(f"note: {method}: {remark}")
    print(f"runs in {o.save_dir}, what they print in {logs.folder}, the report in {o.report}", flush=True)


def fetch_command(teachers, o):
    names = [teacher.model for teacher in teachers]
    return ["python", script("scripts/fetch_pretrained_teachers.py"), *names, "--save_dir", o.save_dir]


def fetch(teachers, o) -> set[str]:
    """Fetch these; the paths of those that are not there in the end."""
    if teachers:
        children.start([sys.executable, *fetch_command(teachers, o)[1:]]).wait()
    return {teacher.path for teacher in teachers if not os.path.exists(teacher.path)}


def backend_of(jobs, logs, o):
    left = [job for job in jobs if not job.done]
    if o.slurm:
        print(f"on Slurm's partition {o.slurm}: {o.gpus} GPUs and {o.cpus} cores a job", flush=True)
        return Slurm(o.slurm, o.time, o.gpus, o.cpus, logs)
    gpus = [] if any(job.settings["device"] == "cpu" for job in left) else _gpus()
    found = slots(o.jobs, left, gpus)
    if left:
        threads = found[0].get("OMP_NUM_THREADS") or os.environ["OMP_NUM_THREADS"]
        where = f"{len(gpus)} GPU{'s' * (len(gpus) != 1)}" if gpus else "the processor"
        print(f"{len(found)} at a time on {where}, {threads} thread{'s' * (threads != '1')} each", flush=True)
    return Local(found, logs)


def _gpus():
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def finish(table, failed, unfetched, o):
    """The report, and whether everything went well. Raises RunError where it did not."""
    done = sum(job.done for job in table.jobs)
    print(f"{done} of {len(table.jobs)} runs are done")
    if any(job.done or job.name in failed for job in table.students):
        for fault in write_report(o.save_dir, o.report, table.record(), o.significance, hparams=True):
            print(f"note: {fault}", file=sys.stderr)
        print(f"the report is {os.path.join(o.report, 'report.html')}, and beside it .md, .tex, .csv and .json")
    if failed or unfetched:
        without = f"; {unfetched} had no teacher" if unfetched else ""
        raise RunError(f"{len(failed)} of {len(table.jobs)} runs failed{without}: their logs are in "
                       f"{o.save_dir}/logs; fix what they say, and the same command tries them again")


if __name__ == "__main__":
    guarded(main)
