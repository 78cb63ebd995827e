"""Published training recipes, `--recipe NAME`: they set defaults, and flags that are given win.

Every value stands here once, with the key of its source. What no row gives is not published in any source here: it
keeps the scripts' own default, and a run of a method without a row says so.

python scripts/recipes_table.py writes the tables of docs/models.md from this file.
"""
from typing import Any, NamedTuple

from models.checkpoint import name_in_path

SOURCES = {
    "crd": "RepDistiller (Tian et al., ICLR 2020), the defaults and commands of its README and scripts",
    "dkd": "mdistiller (Zhao et al., CVPR 2022), configs/cifar100/dkd and the defaults of mdistiller/engine/cfg.py",
    "imagenet": "mdistiller, configs/imagenet/{r34_r18,r50_mv1}/{kd,dkd,at,crd}.yaml: CRD with 256 images at rate 0.1, "
                "the others with 512 at 0.2, which is the same by the linear rule; no warm-up of the rate",
    "nkd": "cls_KD (Yang et al., ICCV 2023), "
           "configs/distillers/imagenet/{res34_distill_res18,res50_distill_mv1}_img.py",
    "dot": "mdistiller (DOT, Zhao et al., ICCV 2023), configs/tiny_imagenet/dot; no warm-up of the rate. IKD's own "
           "settings on Tiny-ImageNet are not in its published code",
}


class Setting(NamedTuple):
    """An option (its name among the parsed ones), its value, and the key of its source."""

    option: str
    value: Any
    source: str


class Weights(NamedTuple):
    """A method's settings in a recipe, for one pair (teacher, student), or for every pair where that is None."""

    recipe: str
    method: str
    pair: tuple[str, str] | None
    values: dict[str, float]
    source: str


# Not here, so left to the scripts: the rate of cifar100, which depends on the network (0.05, or 0.01 for MobileNetV2,
# ShuffleV1 and ShuffleV2), and its warm-up (20 epochs for students, as IKD; none for teachers, as CRD).
SCHEDULES = {
    "cifar100": (
        Setting("epochs", 240, "crd"),
        Setting("batch_size", 64, "crd"),
        Setting("lr_decay_epochs", [150, 180, 210], "crd"),
        Setting("lr_decay_rate", 0.1, "crd"),
        Setting("weight_decay", 5e-4, "crd"),
        Setting("momentum", 0.9, "crd"),
    ),
    "tinyimagenet": (
        Setting("epochs", 200, "dot"),
        Setting("batch_size", 256, "dot"),
        Setting("learning_rate", 0.2, "dot"),
        Setting("lr_decay_epochs", [60, 120, 160], "dot"),
        Setting("lr_decay_rate", 0.1, "dot"),
        Setting("weight_decay", 5e-4, "dot"),
        Setting("momentum", 0.9, "dot"),
        Setting("warm_up", 0, "dot"),
    ),
    "imagenet": (
        Setting("epochs", 100, "imagenet"),
        Setting("batch_size", 256, "imagenet"),
        Setting("learning_rate", 0.1, "imagenet"),
        Setting("lr_decay_epochs", [30, 60, 90], "imagenet"),
        Setting("lr_decay_rate", 0.1, "imagenet"),
        Setting("weight_decay", 1e-4, "imagenet"),
        Setting("momentum", 0.9, "imagenet"),
        Setting("warm_up", 0, "imagenet"),
    ),
}

R34_R18 = ("torchvision:resnet34", "torchvision:resnet18")
R50_MV1 = ("torchvision:resnet50", "MobileNetV1")


def _dkd(recipe, pair, beta, kd_T, source):
    return Weights(recipe, "dkd", pair, {"gamma": 1.0, "alpha": 1.0, "beta": beta, "kd_T": kd_T}, source)


WEIGHTS = (
    Weights("cifar100", "kd", None, {"gamma": 0.1, "alpha": 0.9, "kd_T": 4.0}, "crd"),
    _dkd("cifar100", ("resnet56", "resnet20"), 2.0, 4.0, "dkd"),
    _dkd("cifar100", ("resnet110", "resnet32"), 2.0, 4.0, "dkd"),
    _dkd("cifar100", ("wrn_40_2", "wrn_16_2"), 6.0, 4.0, "dkd"),
    _dkd("cifar100", ("wrn_40_2", "wrn_40_1"), 6.0, 4.0, "dkd"),
    _dkd("cifar100", ("vgg13", "vgg8"), 6.0, 4.0, "dkd"),
    _dkd("cifar100", ("vgg13", "MobileNetV2"), 6.0, 4.0, "dkd"),
    _dkd("cifar100", ("resnet32x4", "resnet8x4"), 8.0, 4.0, "dkd"),
    _dkd("cifar100", ("resnet32x4", "ShuffleV1"), 8.0, 4.0, "dkd"),
    _dkd("cifar100", ("resnet32x4", "ShuffleV2"), 8.0, 4.0, "dkd"),
    _dkd("cifar100", ("wrn_40_2", "ShuffleV1"), 8.0, 4.0, "dkd"),
    _dkd("cifar100", ("ResNet50", "MobileNetV2"), 8.0, 4.0, "dkd"),
    _dkd("imagenet", R34_R18, 0.5, 1.0, "imagenet"),
    _dkd("imagenet", R50_MV1, 2.0, 1.0, "imagenet"),
    *(Weights("imagenet", "kd", pair, {"gamma": 0.5, "alpha": 0.5, "kd_T": 1.0}, "imagenet")
      for pair in (R34_R18, R50_MV1)),
    *(Weights("imagenet", "nkd", pair, {"gamma": 1.0, "beta": 1.5, "kd_T": 1.0}, "nkd") for pair in (R34_R18, R50_MV1)),
    *(Weights("imagenet", "attention", pair, {"gamma": 1.0, "beta": 1000.0}, "imagenet")
      for pair in (R34_R18, R50_MV1)),
    *(Weights("imagenet", "crd", pair, {"gamma": 1.0, "beta": 0.8}, "imagenet") for pair in (R34_R18, R50_MV1)),
)


def schedule(recipe: str | None) -> dict[str, Any]:
    """The options that a recipe sets for any run; none without a recipe."""
    return {setting.option: setting.value for setting in SCHEDULES[recipe]} if recipe else {}


def weights(recipe: str | None, method: str, path_t: str | None, student: str) -> dict[str, float]:
    """The options that a recipe sets for a method and a pair; none where nothing is published, or without a recipe.

    path_t: the teacher's file, or a name such as torchvision:resnet34
    """
    rows = [row for row in WEIGHTS if (row.recipe, row.method) == (recipe, method)]
    if not rows or path_t is None:
        return {}
    pair = (name_in_path(path_t), student) if any(row.pair for row in rows) else None
    return next((row.values for row in rows if row.pair in (None, pair)), {})


def note(options) -> str | None:
    """A line where the recipe says nothing of the run's method and pair."""
    if not options.recipe or weights(options.recipe, options.distill, options.path_t, options.model_s):
        return None
    return (f"recipe {options.recipe} has no published weights for {options.distill} and these networks: "
            "those of this run are the method's own defaults, or given")
