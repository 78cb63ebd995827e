"""`--recipe NAME`: published settings (published.json) as defaults; flags that are given win.

What no row gives is not published in any source there: it keeps the scripts' own default, and a run of a method
without a row says so. Not in a schedule, so left to the scripts: the learning rate of cifar100, which depends on the
network (0.05, or 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2), and its warm-up (20 epochs for students, as IKD; none
for teachers, as CRD).
"""
from typing import Any

from helper.record import published
from helper.record.published import SCHEDULES
from models.checkpoint import name_in_path


def schedule(recipe: str | None) -> dict[str, Any]:
    """The options that a recipe sets for any run; none without a recipe."""
    return {key: value for key, value in SCHEDULES[recipe].items() if key != "source"} if recipe else {}


def weights(recipe: str | None, method: str, path_t: str | None, student: str) -> dict[str, Any]:
    """The options that a recipe sets for a method and a pair; none where nothing is published, or without a recipe.

    path_t: the teacher's file, or a name such as torchvision:resnet34
    """
    if recipe is None or path_t is None:
        return {}
    return published.weights(recipe, method, f"{name_in_path(path_t)}->{student}") or {}


def note(options) -> str | None:
    """A line where the recipe says nothing of the run's method and pair."""
    if not options.recipe or weights(options.recipe, options.distill, options.path_t, options.model_s):
        return None
    return (f"recipe {options.recipe} has no published weights for {options.distill} and these networks: "
            "those of this run are the method's own defaults, or given")
