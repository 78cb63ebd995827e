"""Time a training step, side by side in one run: a loop in the published style, then each step of ours.

python scripts/bench.py                       # resnet32x4 -> resnet8x4, dkd+IKD, batches of 64
python scripts/bench.py --write               # and put the tables into docs/performance.md
python scripts/bench.py --compile             # with a row for --compile, which takes minutes to compile
python scripts/bench.py --methods all --write # each method's step beside kd's, for docs/methods.md

Images and weights are random, so nothing has to be there. Every variant lives in a process of its own, and
they take turns, a few steps each, so that a drift of the machine's speed meets all alike; the figure
of a variant is the median of its turns. The floor is counted: multiplications and additions of the
networks, and bytes of weights and images, over the matrix rate and the bandwidth measured in the same run.
"""
import argparse
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

import torch

from dataset.views import views_of
from distiller_zoo import METHODS
from helper.cli import Parser
from helper.device import describe
from helper.record import published
from helper.step import Phase
from helper.teacher.plan import unstored
from helper.util.arguments import positive_int
from helper.util.errors import guarded
from helper.util.nested import tensors
from models import model_dict
from scripts.docs_tables import with_table
from scripts.pages import markdown_table
from scripts.tables.plan import as_flags
from scripts.tables.presets import weights
from scripts.timing.steps import IMAGES, Variant, our_phase, profiled, seconds_of, steps_of, steps_of_phase, workers

DOCS = Path(__file__).parent.parent / "docs"
# How many steps an epoch has where methods are compared.
EPOCH = 4

PUBLISHED, LIVE, CACHED = Variant(published=True), Variant(), Variant(cached=True)
VARIANTS = [
    PUBLISHED, LIVE, Variant(channels_last=True), Variant(channels_last=True, bf16=True),
    CACHED, Variant(cached=True, channels_last=True), Variant(cached=True, channels_last=True, bf16=True),
]
CAPTURED = [
    Variant(channels_last=True, bf16=True, captured=True),
    Variant(cached=True, captured=True), Variant(cached=True, channels_last=True, bf16=True, captured=True),
]
COMPILED = Variant(cached=True, channels_last=True, bf16=True, compiled=True)


def variants_of(a) -> list[Variant]:
    """The rows of the comparison on a device."""
    return VARIANTS + CAPTURED * (a.device == "cuda") + [COMPILED] * a.compile


def turn_lengths(asked: int, batch_size: int, device: str) -> tuple[int, int]:
    """How many steps a timed turn has, and the one before that warms up: past the first epoch, in which IKD only
    collects. On a GPU the teacher works ahead, for up to an epoch of these few images, so that only whole epochs hold
    its share of a step; and the first ones are for capturing.
    """
    epoch = IMAGES // batch_size
    return (-(-asked // epoch) * epoch, 5 * epoch) if device == "cuda" else (asked, epoch + 3)


def compare(variants: list[Variant], a) -> dict[Variant, tuple[float, float]]:
    """By variant, (median seconds a step, peak MiB)."""
    turns: dict[Variant, list[float]] = {variant: [] for variant in variants}
    peaks: dict[Variant, float] = {}
    steps, warm_up = turn_lengths(a.steps, a.batch_size, a.device)
    with workers(variants, a) as pipes:
        for turn in range(-1, a.turns):
            for variant, pipe in zip(variants, pipes, strict=True):
                pipe.send(steps if turn >= 0 else warm_up)
                seconds, peaks[variant] = pipe.recv()
                turns[variant] += [seconds] * (turn >= 0)
                print(f"\r\033[K{variant}: {1000 * seconds:.1f} ms a step, turn {turn + 1} of {a.turns}", end="",
                      file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr)
    return {variant: (statistics.median(turns[variant]), peaks[variant]) for variant in variants}


def methods_table(a, device) -> str:
    """What a step of each method takes beside one of kd, in Markdown: all take turns in this process."""
    variants = [name for name, row in published.WEIGHTS[published.DATASET].items() if "distill" in row]
    specs = [*METHODS, *variants, "kd+IKD"] if a.methods == "all" else a.methods.split(",")
    steps, memory = {}, {}
    for spec in dict.fromkeys(["kd", *specs]):
        loss = as_flags(weights(spec, f"{a.teacher}->{a.student}"))
        for cached in (False, True):
            phase = our_phase(Variant(cached), a, EPOCH * a.batch_size, loss)
            if not (cached and unstored(phase.objective.reads)):
                steps[spec, cached] = steps_of_phase(phase, a.batch_size)
                memory[spec, cached] = held(phase) / 2**20
    turns: dict[tuple, list[float]] = {key: [] for key in steps}
    for turn in range(-1, a.turns):  # turn -1 warms up: past the first epoch, in which IKD only collects
        for key, stream in steps.items():
            seconds = seconds_of(stream, a.steps if turn >= 0 else EPOCH + 1, device, time.process_time)
            turns[key] += [seconds] * (turn >= 0)
    head, rows = ("", "ms a step", "× kd", "with the teacher cache, ms", "× kd", "MiB more than kd"), []
    for spec in specs:
        cells = [spec]
        for cached in (False, True):
            base, own = (statistics.median(turns.get((name, cached), [math.nan])) for name in ("kd", spec))
            cells += [f"{1000 * own:.0f}", f"{own / base:.2f}"] if (spec, cached) in turns else ["–", "–"]
        rows.append([*cells, f"{memory[spec, False] - memory['kd', False]:.1f}"])
    kind = "the processor's time" if device.type == "cpu" else "time"
    return (f"{markdown_table(head, rows, numbers=True)}\n\nMedians of {a.turns} turns of {a.steps} steps, {kind}. "
            "Memory: what a step keeps for its backward pass, the teacher's outputs, the loss's own parameters and "
            "buffers.\n")


def held(phase: Phase) -> int:
    """The bytes that a step holds when its forward pass is over, without the optimizer's."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # itself, it would hold the graph that holds it

    phase.start_epoch(1)
    batch, teacher = next(phase.batches(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = phase.forward(batch, teacher)
    for tensor in tensors([teacher, *phase.objective.parameters(), *phase.objective.buffers(), outputs[0]]):
        keep(tensor)
    return sum(storages.values())


def rate_of(device, dtype) -> float:
    """FLOP/s of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, device)


def bandwidth_of(device) -> float:
    """Bytes/s of a large copy, read and written."""
    source = torch.randn(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best_seconds(lambda: target.copy_(source), device)


def best_seconds(work, device) -> float:
    """The shortest of ten runs after two for warming up; work: returns a tensor."""
    runs = iter(work, None)  # without end
    return min([seconds_of(runs, 1, device) for _ in range(12)][2:])


def floor_of(variant, a, rates, bandwidth) -> float:
    """Seconds a step that the matrix rate and the bandwidth allow: the student thrice (forward, and both
    halves of backward), the teacher once; weights read and written by SGD, feature maps left out."""
    from torch.utils.flop_counter import FlopCounterMode
    flops = weights = 0
    for name, passes in ((a.student, 3), *(() if variant.cached else ((a.teacher, 1),))):
        network = model_dict[name](num_classes=a.classes).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 32, 32))
        flops += passes * counter.get_total_flops() * a.batch_size
        weights += sum(p.numel() for p in network.parameters()) * (5 if passes == 3 else 1)
    return max(flops / rates[variant.bf16], 4 * weights / bandwidth)


def table(results, a, device) -> str:
    """The comparison in Markdown."""
    rates = {False: rate_of(device, torch.float32), True: rate_of(device, torch.bfloat16)}
    bandwidth = bandwidth_of(device)
    base = results[PUBLISHED][0]
    rows = [(variant, f"{1000 * seconds:.1f}", f"{a.batch_size / seconds:,.0f}",
             f"{50000 / a.batch_size * seconds:.1f}", f"{base / seconds:.2f}", f"{peak:,.0f}",
             f"{1000 * floor_of(variant, a, rates, bandwidth):.1f}") for variant, (seconds, peak) in results.items()]
    head = ("step", "ms a step", "images/s", "s an epoch of 50,000", "ratio", "peak MiB", "floor, ms")
    memory = "device's" if device.type == "cuda" else "whole process's, libraries included"
    text = (f"Measured rates: {rates[False] / 1e9:,.0f} GFLOP/s in float32, {rates[True] / 1e9:,.0f} in bfloat16, "
            f"{bandwidth / 1e9:.1f} GB/s. Peak memory is the {memory}.\n")
    return f"{markdown_table(head, rows, numbers=True)}\n\n{text}"


def growth(a) -> str:
    """How a cached float32 step grows with the classes and with the batch, in Markdown."""
    rows = []
    for classes, batch_size in ((100, 64), (1000, 64), (100, 16), (100, 256)):
        case = argparse.Namespace(**vars(a) | {"classes": classes, "batch_size": batch_size})
        ((seconds, _),) = compare([CACHED], case).values()
        rows.append((classes, batch_size, f"{1000 * seconds:.1f}", f"{batch_size / seconds:,.0f}"))
    return markdown_table(("classes", "batch", "ms a step", "images/s"), rows, numbers=True) + "\n"


def epochs_table(results, a) -> str:
    """Hours of whole runs on 50,000 images, computed from the measured steps: all but the teacher's work grows with
    the epochs; a cache holds it down to one pass over each view."""
    published, live, cached = (results[variant][0] * 50000 / a.batch_size / 3600  # hours an epoch
                               for variant in (PUBLISHED, LIVE, CACHED))
    views, rows = len(views_of(True)), []
    for epochs in (20, 60, 240):
        seen = views * (1 - (1 - 1 / views) ** epochs)
        passes_of_teacher = (epochs, seen, 0, views)
        hours = [published * epochs, *((live - cached) * passes + cached * epochs for passes in passes_of_teacher)]
        rows.append((epochs, *(f"{x:.1f} h" for x in hours)))
    head = ("epochs", "published style", "live teacher", "growing cache, first run",
            "growing cache, later runs of the trial", "complete cache, with its build")
    return markdown_table(head, rows, numbers=True) + "\n"


def profile(a, device) -> str:
    """The ten most expensive operators of the first and the last variant, in Markdown."""
    tables, kind = [], "device" if device.type == "cuda" else "cpu"
    for variant in (VARIANTS[0], VARIANTS[-1]):
        steps = steps_of(variant, a)
        seconds_of(steps, IMAGES // a.batch_size + 3, device)
        tables.append(operators_table(variant, [(getattr(event, f"self_{kind}_time_total"), event.key, event.count)
                                                for event in profiled(steps, 5, device)]))
    return "\n".join(tables)


def operators_table(name: object, operators: list[tuple[float, str, int]]) -> str:
    """The ten most expensive operators of 5 steps, each as (µs, its name, its calls), in Markdown."""
    total = sum(spent for spent, _, _ in operators)
    if total == 0:
        return f"{name}: the profiler sees no time of the device here (PyTorch reads it through CUPTI).\n"
    rows = [(f"`{key}`", f"{count / 5:g}", f"{spent / 5000:.1f}", f"{100 * spent / total:.1f}%")
            for spent, key, count in sorted(operators, reverse=True)[:10]]
    return markdown_table((f"{name}: operator", "calls a step", "ms a step", "share"), rows, numbers=True) + "\n"


def main():
    parser = Parser(prog="bench.py", description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", default="resnet32x4", choices=model_dict, metavar="NAME")
    parser.add_argument("--student", default="resnet8x4", choices=model_dict, metavar="NAME")
    parser.add_argument("--batch_size", type=positive_int, default=64, metavar="N")
    parser.add_argument("--classes", type=positive_int, default=100, metavar="N")
    parser.add_argument("--turns", type=positive_int, default=5, metavar="N", help="turns of each variant (default 5)")
    parser.add_argument("--steps", type=positive_int, default=4, metavar="N", help="steps in a turn (default 4)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="also time --compile")
    parser.add_argument("--methods", metavar="NAMES", help="compare these methods instead: all, or names as "
                        "reproduce.py has them, separated by commas")
    parser.add_argument("--write", action="store_true",
                        help="put the tables into docs/performance.md, those of --methods into docs/methods.md")
    a = parser.parse_args()
    device = torch.device(a.device)
    command = " ".join(["python", "scripts/bench.py", *(arg for arg in sys.argv[1:] if arg != "--write")])
    head = f"`{command}` on {describe(device)}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    if a.methods:
        text = f"{head}; {a.teacher}→{a.student}, batches of {a.batch_size}:\n\n{methods_table(a, device)}"
    else:
        results = compare(variants_of(a), a)
        text = (f"{head}; {a.teacher}→{a.student}, dkd+IKD, batches of {a.batch_size}:\n\n"
                f"{table(results, a, device)}\n"
                f"How a cached float32 step grows:\n\n{growth(a)}\n"
                f"Whole runs in float32, computed from the first table:\n\n{epochs_table(results, a)}\n"
                f"Where the time goes, before and after:\n\n{profile(a, device)}")
    print(text)
    if a.write:
        page = DOCS / ("methods.md" if a.methods else "performance.md")
        page.write_text(with_table(page.read_text(), text, "scripts/bench.py"))


if __name__ == "__main__":
    guarded(main)
