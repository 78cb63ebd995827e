"""The flags of both scripts, and what to say of a word that was meant to be another."""
import argparse
import difflib
from argparse import ArgumentParser, ArgumentTypeError

from dataset import LOADERS
from distiller_zoo import METHODS, flags_of
from helper.record import recipes
from helper.util.arguments import (
    epoch_list,
    nonnegative_float,
    nonnegative_int,
    positive_float,
    positive_int,
    trial_name,
    unit_float,
    up_to_one,
)
from models import ModelError, check_name, model_dict
from models._registry import ZOOS

# The benchmark's learning rate for the networks made for phones; every other student starts at 0.05.
MOBILE_NETWORKS, MOBILE_LEARNING_RATE, LEARNING_RATE = ("MobileNetV2", "ShuffleV1", "ShuffleV2"), 0.01, 0.05
NETWORKS = ", ".join([*model_dict, *(f"{zoo}:NAME" for zoo in ZOOS)])
# What the CRD benchmark's code or IKD's takes with every method: taken here too, whatever the method reads.
PUBLISHED_FLAGS = ("--kd_T", "--wttm_gamma", "--wttm_beta", "--feat_dim", "--mode", "--nce_k", "--nce_t", "--nce_m",
                   "--hint_layer")
# Words of the field, and of the published tables, for methods and flags.
METHOD_WORDS = {"at": "attention", "fitnet": "hint", "fitnets": "hint", "sp": "similarity", "cc": "correlation",
                "ft": "factor", "ab": "abound", "svd": "kdsvd"}
FLAG_WORDS = {"--lr": "--learning_rate", "--gpu": "--device cuda", "--bs": "--batch_size", "--wd": "--weight_decay",
              "--teacher": "--path_t", "--student": "--model_s", "--workers": "--num_workers", "--epoch": "--epochs",
              "--warmup": "--warm_up"}


def network_name(text: str) -> str:
    """The name of a network that can be built."""
    try:
        return check_name(text)
    except ModelError as error:
        raise ArgumentTypeError(str(error)) from None


def method_name(text: str) -> str:
    """The name of a method."""
    if text in METHODS:
        return text
    method, _, term = text.lower().partition("+")
    method = METHOD_WORDS.get(method, method)
    if "ikd" in (method, term):
        base = method if method in METHODS else "kd"
        raise ArgumentTypeError(f"'{text}': IKD is a term beside any method: give --distill {base} --avg 6.5")
    raise _unknown("method", text, method, METHODS)


def dataset_name(text: str) -> str:
    """The name of a data set."""
    if text in LOADERS:
        return text
    simple = text.lower().replace("-", "").replace("_", "")
    raise _unknown("data set", text, simple, LOADERS, 0.9)


def _unknown(what, text, simple, known, alike=0.6):
    near = [simple] if simple in known else difflib.get_close_matches(simple, known, 1, alike)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
    return ArgumentTypeError(f"there is no {what} '{text}': {hint}")


def add_method_flags(group, method) -> None:
    """The flags of one method, with its defaults."""
    for flag in flags_of(method):
        group.add_argument(flag.name, type=flag.type, default=flag.default, choices=flag.choices, help=flag.help)


def add_ignored_flags(parser: ArgumentParser, method) -> list[str]:
    """The published flags that the method does not read, which leave no value where they are not given; their names."""
    own = {flag.name for flag in flags_of(method)}
    every = {flag.name: flag for other in METHODS.values() for flag in other.flags}
    ignored = [name for name in PUBLISHED_FLAGS if name not in own]
    for name in ignored:
        parser.add_argument(name, type=every[name].type, choices=every[name].choices, default=argparse.SUPPRESS,
                            help=argparse.SUPPRESS)
    parser.add_argument("--model_t", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return [*ignored, "--model_t"]


def add_student_flags(parser: ArgumentParser) -> None:
    """What is trained, and the weights of its loss."""
    group = parser.add_argument_group("what is trained")
    group.add_argument("--path_t", metavar="FILE",
                       help="the teacher's checkpoint (required), or torchvision:NAME, timm:NAME with their weights")
    group.add_argument("--model_s", default="resnet8", type=network_name, metavar="NAME",
                       help=f"the student, one of {NETWORKS}")
    group.add_argument("--distill", default="kd", type=method_name, metavar="METHOD", help="one of the methods below")
    group.add_argument("-t", "--trial", type=trial_name, default="1", metavar="NAME",
                       help="names the run and selects its random numbers")
    group = parser.add_argument_group("weights of the loss: r·CE + a·KD + b·method + avg·IKD")
    group.add_argument("-r", "--gamma", type=nonnegative_float, default=1.0, metavar="R",
                       help="weight of the cross-entropy with the labels")
    group.add_argument("-a", "--alpha", type=nonnegative_float, metavar="A",
                       help="weight of the KD loss, or of the method's own (default: the method's published value)")
    group.add_argument("-b", "--beta", type=nonnegative_float, metavar="B",
                       help="weight of the method's loss (default: the method's published value)")
    group.add_argument("--ramp", type=nonnegative_int, metavar="N",
                       help="epoch e < N runs at e/N of the method's weight (default: 20 for rld, sdd and reviewkd, "
                            "else 0)")
    group.add_argument("--avg", type=nonnegative_float, default=0.0, metavar="W",
                       help="weight of the IKD term; 0: no IKD")
    group.add_argument("--intra_T", type=positive_float, default=2.0, metavar="T", help="temperature of the IKD term")
    group.add_argument("--ikd_means", default="epoch", choices=("epoch", "all", "smooth"),
                       help="class means of IKD: over the views of the first epoch, as published; over all views, "
                            "from the teacher cache; smooth: smoothed labels in their place, as a control")
    group = parser.add_argument_group("teacher cache: the teacher's outputs, each computed once")
    group.add_argument("--teacher_cache", default="off", metavar="off|auto|on|DIR",
                       help="auto: if estimated to be faster; on: build it where it is missing; DIR: the same, there")
    group.add_argument("--cache_dtype", default="float16", choices=("float16", "float32"),
                       help="of the stored values; the teacher itself runs in float32")
    group.add_argument("--cache_dir", default="./save/teacher_cache", metavar="DIR", help="of the caches of all runs")
    group = parser.add_argument_group("optimizer")
    group.add_argument("--optimizer", default="sgd", choices=("sgd", "dot"),
                       help="dot: the distillation-oriented trainer (Zhao et al., ICCV 2023), SGD with one momentum "
                            "for the cross-entropy and another for the distillation")
    group.add_argument("--dot_delta", type=unit_float, default=0.075, metavar="X",
                       help="dot: the distillation's momentum is greater by this, the cross-entropy's smaller")
    group = parser.add_argument_group("first stage")
    group.add_argument("--init_epochs", type=positive_int, default=30, metavar="N",
                       help="epochs of the first stage of factor, abound and fsp")


def add_teacher_flags(parser: ArgumentParser) -> None:
    """What train_teacher.py trains."""
    group = parser.add_argument_group("what is trained")
    group.add_argument("--model", default="resnet110", type=network_name, metavar="NAME", help=f"one of {NETWORKS}")
    group.add_argument("-t", "--trial", type=nonnegative_int, default=0, metavar="N",
                       help="names the run and selects its random numbers")


def add_data_flags(group, default: str | None, data: str, size: str) -> None:
    """The data set, and how it is read.

    default: of --dataset; data, size: what the help says of the defaults of --dataset and --image_size
    """
    group.add_argument("--dataset", default=default, type=dataset_name, metavar="NAME",
                       help=f"one of {', '.join(LOADERS)} {data}")
    group.add_argument("--data_dir", default="./data", metavar="DIR", help="where data is, or is fetched to")
    group.add_argument("--image_size", type=positive_int, metavar="N",
                       help=f"height and width of what the networks see ({size})")
    group.add_argument("--skip_unreadable", action="store_true",
                       help="tinyimagenet, imagenet, folder: read every image once at the start, and count and leave "
                            "out those that cannot be read")
    group.add_argument("--num_workers", type=nonnegative_int, default=8, metavar="N",
                       help="processes that read images (imagenet, folder); data sets held in memory need none")


def add_training_flags(parser: ArgumentParser, warmup: int) -> None:
    """What both scripts share; warmup: the default of --warm_up."""
    group = parser.add_argument_group("training")
    group.add_argument("--recipe", choices=recipes.SCHEDULES, metavar="NAME",
                       help="published settings as the defaults of the flags below, and of the method's weights: "
                            + ", ".join(recipes.SCHEDULES))
    group.add_argument("--epochs", type=positive_int, default=240, metavar="N", help="epochs")
    group.add_argument("--batch_size", type=positive_int, default=64, metavar="N",
                       help="images in a step, of all processes together")
    group.add_argument("--learning_rate", type=positive_float, metavar="LR",
                       help=f"(default {LEARNING_RATE}; {MOBILE_LEARNING_RATE} for {', '.join(MOBILE_NETWORKS)})")
    group.add_argument("--lr_decay_epochs", type=epoch_list, default="150,180,210", metavar="LIST",
                       help="the learning rate decays after these epochs")
    group.add_argument("--lr_decay_rate", type=up_to_one, default=0.1, metavar="X",
                       help="factor of the learning rate at a decay")
    group.add_argument("--warm_up", "--wram_up", type=nonnegative_int, default=warmup, metavar="N",
                       help="epoch e < N runs at e/N of the learning rate")
    group.add_argument("--weight_decay", type=nonnegative_float, default=5e-4, metavar="X", help="on every parameter")
    group.add_argument("--momentum", type=unit_float, default=0.9, metavar="X", help="of SGD")
    group.add_argument("--nesterov", action="store_true", help="Nesterov's momentum")
    group.add_argument("--seed", type=nonnegative_int, default=0, metavar="N", help="random seed")
    group = parser.add_argument_group("data and machine")
    add_data_flags(group, "cifar100", "(default cifar100)", "imagenet, folder; default 224")
    group.add_argument("--imbalance", type=up_to_one, default=1.0, metavar="X",
                       help="long tail: the last class keeps X times the first one's training images, those between "
                            "an exponential share; 1: all are kept")
    group.add_argument("--label_noise", type=unit_float, default=0.0, metavar="P",
                       help="part of the training labels that are replaced by another class's")
    group.add_argument("--data_seed", type=nonnegative_int, default=0, metavar="N",
                       help="which images --imbalance keeps and which labels --label_noise replaces; the same for all "
                            "trials")
    group.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    group.add_argument("--amp", default="auto", choices=("auto", "none", "bf16"),
                       help="bf16: the networks run in bfloat16; losses and BN statistics stay in float32; auto: with "
                            "--fast, where the processor has units for it")
    group.add_argument("--channels_last", action="store_true", help="the memory format that convolutions prefer")
    group.add_argument("--compile", action="store_true",
                       help="networks, losses and meters through torch.compile, where it works; changes the last bits")
    group.add_argument("--cuda_graph", default="auto", choices=("auto", "on", "off"),
                       help="on CUDA: a step as one graph; auto: where the method allows it")
    group.add_argument("--fast", action="store_true",
                       help="what was measured fastest: --channels_last, --amp bf16 where the processor has units for "
                            "it, and for students --teacher_cache auto; what is given beside it wins")
    group.add_argument("--sync_bn", action="store_true",
                       help="with torchrun on CUDA: batch norm over the whole batch, not over each process's share")
    group.add_argument("--tf32", default="on", choices=("on", "off"),
                       help="off: float32 convolutions on CUDA keep all their bits, slower (default on, as PyTorch)")
    group.add_argument("--deterministic", action="store_true",
                       help="on CUDA: bit-identical each time, slower; the CPU is so anyway")
    group = parser.add_argument_group("record")
    group.add_argument("--save_dir", default="./save", metavar="DIR", help="where runs are written")
    group.add_argument("--save_freq", type=positive_int, default=40, metavar="N", help="epochs between checkpoints")
    group.add_argument("--print_freq", type=positive_int, default=100, metavar="N",
                       help="steps between the losses that a progress bar shows")
    group.add_argument("--tb_freq", type=positive_int, default=500, metavar="N",
                       help="steps between TensorBoard scalars of each loss")
    group.add_argument("--resume", default="auto", choices=("auto", "never"),
                       help="auto: continue an unfinished run of the same folder")
    group.add_argument("--overwrite", action="store_true", help="start anew: what the run's folder holds is lost")
    group.add_argument("--config", metavar="FILE",
                       help="repeat the run of this args.json; flags that are given beside it win")
    group.add_argument("--dry_run", action="store_true", help="show the resolved options, and train nothing")
