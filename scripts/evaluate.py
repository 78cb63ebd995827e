"""Measure a checkpoint on the test set: accuracy, calibration, consistency within classes, cost.

python scripts/evaluate.py save/models/resnet56_vanilla/ckpt_epoch_240.pth
python scripts/evaluate.py CHECKPOINT --json figures.json

docs/analysis.md says what each figure is.
"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

import torch

from dataset import Data, EvalData
from helper.cli import Parser
from helper.evaluation import Predictions, predict
from helper.util.errors import guarded, printable
from models import Classifier
from scripts.analysis import cost, metrics
from scripts.analysis.checkpoint import LoadedCheckpoint, add_flags, add_json_flag, give, open_checkpoint, say


def main():
    options = options_of(sys.argv[1:])
    loaded, data, device = open_checkpoint(options)
    test = data.test_images(device)
    say(f"{loaded.path}: {loaded.network.name} on the {len(test):,} test images of {data.name}, {device.type}")
    found = measure(loaded, data, predict(loaded.network, test, options.batch_size))
    found |= cost_of(loaded.network, test, options.batch_size)
    give(options.json, found, table(found))


def options_of(argv):
    parser = Parser(prog="evaluate.py", description="Measure a checkpoint on the test set.")
    add_flags(parser)
    add_json_flag(parser)
    return parser.parse_args(argv)


def measure(loaded: LoadedCheckpoint, data: Data, p: Predictions) -> dict:
    """Everything that the predictions say, as plain data; a figure that no image decides is None."""
    total = metrics.summary(p.logits, p.labels)
    found = {
        "checkpoint": loaded.path, "model": loaded.network.name, "dataset": data.name, "classes": len(data.classes),
        "images": total.images, "top1": total.top1, "top5": total.top5, "nll": total.nll,
        "ece": total.ece, "ece_bins": metrics.BINS,
        "consistency": {"spread": total.spread, "kl": total.kl, "ikd": total.ikd},
        "stated_in_the_file": {"epoch": loaded.checkpoint.epoch, "accuracy": loaded.checkpoint.accuracy},
    }
    names = {"class": data.classes} | ({"superclass": data.superclasses} if data.superclasses else {})
    found["per_class"] = rows(names, total.by_class)
    if data.superclasses:
        superclasses, of = metrics.numbered(data.superclasses)
        exact, within = metrics.superclass_accuracy(p.logits, p.labels, of)
        images = metrics.class_counts(of[p.labels], len(superclasses)).long()
        found["per_superclass"] = rows({"superclass": superclasses}, {
            "images": images, "top1": exact, "within": within})
    return found


def rows(names: dict, columns: dict) -> list[dict]:
    """Columns of text and of numbers (tensors) as a list of rows; NaN becomes None."""
    values = names | {key: column.tolist() for key, column in columns.items()}
    return [{key: None if isinstance(v, float) and math.isnan(v) else v
             for key, v in zip(values, row, strict=True)} for row in zip(*values.values(), strict=True)]


def cost_of(network: Classifier, test: EvalData, batch_size: int) -> dict:
    """Parameters, FLOPs an image, and the latency of 1 image and of a batch."""
    images, _ = next(test.batches(min(batch_size, len(test))))
    device = images.device
    timed = {n: cost.latency(network, images[:n]) for n in sorted({1, len(images)})}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {
        "parameters": cost.parameters(network), "flops": cost.flops(network, images[:1]),
        "latency": {"device": name, "batches": [
            {"images": n, "median_ms": 1000 * t.median, "runs": len(t.times) * t.number_per_run}
            for n, t in timed.items()]},
        "versions": {"torch": torch.__version__},
    }


def table(found: dict) -> str:
    """The figures for reading."""
    said, consistency = found["stated_in_the_file"], found["consistency"]
    lines = {
        "checkpoint": printable(found["checkpoint"])
                      + (f", epoch {said['epoch']}" if said["epoch"] is not None else ""),
        "network": f"{found['model']}, {found['parameters']:,} parameters, {found['flops'] / 1e6:,.1f} MFLOPs an image",
        "data": f"{found['dataset']}, {found['images']:,} test images, {found['classes']} classes",
        "accuracy": f"top-1 {found['top1']:.2f}, top-5 {found['top5']:.2f}"
                    + (f" (the file says {said['accuracy']:.2f})" if said["accuracy"] is not None else ""),
        "calibration": f"NLL {found['nll']:.4f}, ECE {found['ece']:.4f} ({found['ece_bins']} bins)",
        "consistency": f"spread {consistency['spread']:.4f}, KL {consistency['kl']:.4f}, IKD {consistency['ikd']:.4f} "
                       "(means over the classes; lower: more alike)",
        "latency": "; ".join(f"{t['median_ms']:.2f} ms for {t['images']} (median of {t['runs']})"
                             for t in found["latency"]["batches"]) + f"; {found['latency']['device']}, float32",
    }
    parts = ["\n".join(f"{name:<13}{line}" for name, line in lines.items())]
    parts += [columns_of(found[key]) for key in ("per_superclass", "per_class") if key in found]
    return "\n\n".join(parts)


def columns_of(rows: list[dict]) -> str:
    """Rows as aligned columns: text to the left, numbers to the right."""
    def shown(key, value):
        if isinstance(value, float):
            return f"{value:.2f}" if key in ("top1", "within") else f"{value:.4f}"
        return "-" if value is None else printable(value)

    cells = [list(rows[0]), *([shown(key, value) for key, value in row.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = [isinstance(value, str) for value in rows[0].values()]
    return "\n".join("  ".join(f"{cell:<{w}}" if left else f"{cell:>{w}}"
                               for cell, w, left in zip(line, widths, text, strict=True)).rstrip() for line in cells)


if __name__ == "__main__":
    guarded(main)
