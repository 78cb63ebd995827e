"""Check this code on a machine's GPU, and time it: tests first, then steps, epochs, several runs and the benchmark.

sh scripts/verify_gpu.sh [--out DIR]

Nothing is fetched: images and weights are random. Each check is a process with a deadline; one that fails does not
keep the next from running. Each leaves a line of JSON in DIR/report.jsonl and its output in DIR/NAME.log.
"""
import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from helper.cli import student_options
from helper.evaluation import evaluate
from helper.loop import train_epoch
from helper.record.run import Earlier, Record
from helper.step import choose_step
from helper.util.arguments import positive_float
from helper.util.errors import RunError, UsageError, guarded
from scripts.timing.steps import Variant, our_phase, profiled, random_data, seconds_of, steps_of_phase, workers

STEPS, WARM_UP = 300, 100
IMAGES, TEST_IMAGES = 50_000, 10_000  # of CIFAR-100
RUNS = (1, 2, 4)
SECONDS = 480  # of all checks together
DEVICE = torch.device("cuda")
PAIR = argparse.Namespace(teacher="resnet32x4", student="resnet8x4", batch_size=64, classes=100, device="cuda")


def variant(teacher: str, precision: str = "fast", way: str = "captured") -> Variant:
    """A way to train, by its words."""
    fast = precision == "fast"
    return Variant(teacher == "cached", fast, fast, captured=way == "captured")


def steps_of(*words: str, warm_up=WARM_UP, **more):
    """An endless stream of steps, of which the first are done; words: as of `variant`; more: as of steps.our_phase."""
    stream = steps_of_phase(our_phase(variant(*words), PAIR, **more), PAIR.batch_size)
    seconds_of(stream, warm_up, DEVICE)
    return stream


def time_steps(*words: str, steps=STEPS, **more) -> dict:
    """Milliseconds of a step, and the memory in use and held at most; words, more: as of steps_of."""
    return {"ms_a_step": 1000 * seconds_of(steps_of(*words, **more), steps, DEVICE),
            "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
            "reserved_mib": torch.cuda.max_memory_reserved() / 2**20}


def time_epoch(teacher: str) -> dict:
    """Seconds of a whole epoch and of the test after it; of the third one, since steps are captured in the others."""
    phase = our_phase(variant(teacher), PAIR, images=IMAGES)
    test = random_data(PAIR.classes, TEST_IMAGES).test_images(DEVICE)
    step, meters = choose_step(phase), phase.meters()
    record = Record(student_options(["--path_t", "none"]), Earlier())
    for epoch in (1, 2, 3):
        started = time.perf_counter()
        train_epoch(phase, epoch, step, meters, record)
        trained = time.perf_counter()
        evaluate(phase.student, test, phase.precision)
        tested = time.perf_counter()
    return {"seconds_of_epoch": trained - started, "seconds_of_test": tested - trained}


def time_runs() -> dict:
    """Images a second of several processes that share the GPU, together."""
    def turn(number, steps):
        for pipe in pipes[:number]:
            pipe.send(steps)
        return sum(PAIR.batch_size / pipe.recv()[0] for pipe in pipes[:number])

    with workers([variant("cached")] * max(RUNS), PAIR) as pipes:
        turn(max(RUNS), WARM_UP)
        return {f"images_a_second_of_{number}": turn(number, STEPS) for number in RUNS}


def profile() -> dict:
    """The twenty kernels of a step that take the most time; none where the profiler, which needs CUPTI, sees none."""
    steps = 30
    kernels = [event for event in profiled(steps_of("live"), steps, DEVICE)
               if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda event: event.self_device_time_total, reverse=True)
    return {"kernels": [{"name": event.key[:120], "calls_a_step": event.count / steps,
                         "us_a_step": event.self_device_time_total / steps} for event in kernels[:20]]}


# What is measured, by name: the deadline in seconds, and the function.
MEASURED: dict[str, tuple[int, Callable[[], dict]]] = {
    **{f"step_{teacher}_{precision}_{way}": (25, partial(time_steps, teacher, precision, way))
       for teacher in ("live", "cached") for precision in ("float32", "fast") for way in ("eager", "captured")},
    "step_crd": (30, partial(time_steps, "live", "fast", "eager", loss=("--distill", "crd"), images=IMAGES)),
    "step_kdsvd": (30, partial(time_steps, "live", "fast", "eager", loss=("--distill", "kdsvd"), steps=30, warm_up=10)),
    "epoch_live": (40, partial(time_epoch, "live")),
    "epoch_cached": (40, partial(time_epoch, "cached")),
    "several_runs": (60, time_runs),
    "profile": (30, profile),
}


def checks() -> list[tuple[str, int, list[str]]]:
    """Each check's name, its deadline in seconds and its command line."""
    found = [("tests", 200, [sys.executable, "-m", "pytest", "tests/gpu"])]
    found += [(name, limit, [sys.executable, __file__, "--only", name]) for name, (limit, _) in MEASURED.items()]
    return [*found, ("bench", 120, [sys.executable, "scripts/bench.py", "--device", "cuda", "--turns", "2"])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", default="./save/verify_gpu", metavar="DIR", help="where the report goes")
    parser.add_argument("--patience", type=positive_float, default=1.0, metavar="X",
                        help="multiplies all deadlines, for a slow or shared machine")
    parser.add_argument("--only", choices=MEASURED, help="measure this here, and print it")
    parser.add_argument("--dry_run", action="store_true", help="print the command lines, and run nothing")
    o = parser.parse_args()
    if o.dry_run or not torch.cuda.is_available():
        print("\n".join(f"# {name}, at most {limit} s\n{shlex.join(argv)}" for name, limit, argv in checks()))
        if o.dry_run:
            return
        raise UsageError("PyTorch finds no CUDA device here: none of the above was run; run it on a machine with a GPU")
    if o.only:
        torch.backends.cudnn.benchmark = True  # as in training
        return print(json.dumps(MEASURED[o.only][1]()))
    os.makedirs(o.out, exist_ok=True)
    end, failed = time.monotonic() + o.patience * SECONDS, []
    with open(os.path.join(o.out, "report.jsonl"), "w", encoding="utf-8") as report:
        for name, limit, argv in checks():
            if not run_check(name, min(o.patience * limit, end - time.monotonic()), argv, o.out, report):
                failed.append(name)
    if failed:
        raise RunError(f"{len(failed)} checks failed ({', '.join(failed)}): see {o.out}/NAME.log")


def run_check(name: str, limit: float, argv: list[str], out: str, report) -> bool:
    """Run a check for at most `limit` seconds; its line goes to `report`. Whether it passed."""
    started, path = time.monotonic(), Path(out, f"{name}.log")
    with open(path, "w", encoding="utf-8") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # with all that it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    line = {"check": name, "passed": code == 0, "exit_code": code, "seconds": round(time.monotonic() - started, 1),
            "device": torch.cuda.get_device_name(), "torch": torch.__version__, "command": shlex.join(argv)}
    if code == 0 and name in MEASURED:
        line["measured"] = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    print(json.dumps(line), file=report, flush=True)
    print(f"{'passed' if code == 0 else 'timed out' if code is None else 'failed'}  {name}, {line['seconds']} s",
          flush=True)
    return code == 0


if __name__ == "__main__":
    guarded(main)
