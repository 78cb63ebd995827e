"""What is published, with its sources: accuracies on CIFAR-100, weights of the losses, schedules, the tables' pairs.

published.json is the one place for these facts. Accuracies are test accuracies in percent by pair
("resnet56->resnet20") and method; a source says whether its figures are of the last or of the best epoch. Weights are
by recipe and method, for the pairs that a row names, or for every pair where it names none; whole numbers that an
option takes as such are strings. LOGS has the best and the last epoch of single published runs.
"""
import json
from pathlib import Path
from typing import Any, NamedTuple

_FACTS = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
DATASET = "cifar100"
SOURCES, ACCURACY, SCHEDULES, WEIGHTS = (_FACTS[key] for key in ("sources", "accuracy", "schedules", "weights"))
LOGS = _FACTS["logs"]
ADDED_KD, IKD, TABLES, REMARKS = (_FACTS[key] for key in ("added_kd", "ikd", "tables", "remarks"))
# The checkpoints that RepDistiller publishes.
TEACHERS = {pair.split("->")[0]: row["teacher"][0] for pair, row in ACCURACY.items()}
FAR = 0.5


class Figure(NamedTuple):
    """A published accuracy in percent; source: a key of SOURCES; epoch: 'last', 'best' or 'not stated'."""

    top1: float
    source: str
    epoch: str


def figure(dataset: str, pair: str, method: str) -> Figure | None:
    """The published accuracy of `method` ('teacher', 'ce', 'kd', ...) for a pair, if there is one."""
    found = ACCURACY.get(pair, {}).get(method) if dataset == DATASET else None
    return Figure(found[0], found[1], SOURCES[found[1]]["figure"]) if found else None


def weights(recipe: str, method: str, pair: str | None) -> dict[str, Any] | None:
    """The options that are published for a method and a pair, by name; None where there are none."""
    row = WEIGHTS.get(recipe, {}).get(method)
    if row is None or ("pairs" in row and pair not in row["pairs"]):
        return None
    options = row["set"] | row.get("pairs", {}).get(pair, {})
    return {name: value if isinstance(value, str) else float(value) for name, value in options.items()}


def teacher_warning(name: str, dataset: str, top1: float) -> str | None:
    """A line where a teacher on CIFAR-100 tests more than FAR points from the published one of its name.

    name: the model's; top1: its measured accuracy, in percent
    """
    published = TEACHERS.get(name) if dataset == DATASET else None
    if published is None or abs(top1 - published) <= FAR:
        return None
    return (f"this teacher tests at {top1:.2f}, the published {name} at {published:.2f}: "
            "students of it do not compare with the published ones")
