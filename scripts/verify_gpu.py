"""Check this code on a machine's GPU, and time it: tests first, then the step, the benchmark and the memory.

sh scripts/verify_gpu.sh [--out DIR]

Nothing is fetched: images and weights are random. Each check is a process with a deadline; one that fails does not
keep the next from running. Each leaves a line of JSON in DIR/report.jsonl and its output in DIR/NAME.log.
"""
import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from helper.util.errors import RunError, UsageError, guarded

STEPS, WARM_UP = 300, 100
# (cached, bf16 and channels_last, captured)
STEP_KINDS = [(cached, fast, captured) for cached in (False, True) for fast in (False, True)
              for captured in (False, True)]


def checks() -> list[tuple[str, int, list[str]]]:
    """Each check's name, its deadline in seconds and its command line."""
    here = [sys.executable, str(Path(__file__))]
    found = [("tests", 200, [sys.executable, "-m", "pytest", "tests/gpu"])]
    for cached, fast, captured in STEP_KINDS:
        words = ["cached" if cached else "live", "fast" if fast else "float32", "captured" if captured else "eager"]
        found.append(("_".join(["step", *words]), 20, [*here, "--step", *words]))
    return [*found, ("bench", 110, [sys.executable, "scripts/bench.py", "--device", "cuda", "--turns", "2"])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", default="./save/verify_gpu", metavar="DIR", help="where the report goes")
    parser.add_argument("--dry_run", action="store_true", help="print the command lines, and run nothing")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.step:
        return print(json.dumps(time_steps(*o.step)))
    if o.dry_run:
        return print("\n".join(f"# {name}, at most {limit} s\n{shlex.join(argv)}" for name, limit, argv in checks()))
    if not torch.cuda.is_available():
        raise UsageError("PyTorch finds no CUDA device here: run this on a machine with a GPU; --dry_run shows what it "
                         "would run")
    os.makedirs(o.out, exist_ok=True)
    with open(os.path.join(o.out, "report.jsonl"), "w", encoding="utf-8") as report:
        failed = [name for name, limit, argv in checks() if not run_check(name, limit, argv, o.out, report)]
    if failed:
        raise RunError(f"{len(failed)} checks failed ({', '.join(failed)}): see {o.out}/NAME.log")


def run_check(name: str, limit: int, argv: list[str], out: str, report) -> bool:
    """Run a check for at most `limit` seconds; its line goes to `report`. Whether it passed."""
    started = time.monotonic()
    path = os.path.join(out, f"{name}.log")
    with open(path, "w", encoding="utf-8") as log:
        try:
            code = subprocess.run(argv, stdout=log, stderr=subprocess.STDOUT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = None
    line = {"check": name, "passed": code == 0, "exit_code": code, "seconds": round(time.monotonic() - started, 1),
            "device": torch.cuda.get_device_name(), "torch": torch.__version__, "command": shlex.join(argv)}
    if code == 0 and name.startswith("step"):
        line["measured"] = json.loads(Path(path).read_text(encoding="utf-8").splitlines()[-1])
    print(json.dumps(line), file=report, flush=True)
    print(f"{'passed' if code == 0 else 'timed out' if code is None else 'failed'}  {name}, {line['seconds']} s",
          flush=True)
    return code == 0


def time_steps(teacher: str, precision: str, way: str) -> dict[str, float]:
    """Milliseconds of a step, by CUDA events over STEPS steps, and the peak of memory in MiB."""
    from scripts.bench import Variant, our_steps

    torch.backends.cudnn.benchmark = True
    fast = precision == "fast"
    variant = Variant("", teacher == "cached", fast, fast, captured=way == "captured")
    options = argparse.Namespace(teacher="resnet32x4", student="resnet8x4", batch_size=64, classes=100)
    steps = our_steps(variant, options, torch.device("cuda"))
    for _ in range(WARM_UP):
        next(steps)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(STEPS):
        next(steps)
    end.record()
    torch.cuda.synchronize()
    return {"ms_a_step": start.elapsed_time(end) / STEPS, "peak_mib": torch.cuda.max_memory_allocated() / 2**20}


if __name__ == "__main__":
    guarded(main)
