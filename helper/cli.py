"""The command lines of both scripts."""
import argparse
import difflib
import os
import sys
from argparse import Namespace

import torch

from dataset import LOADERS, Data
from distiller_zoo import METHODS, flags_of
from helper.record import recipes
from helper.util import distributed
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
from helper.util.errors import UsageError
from models import ModelError, check_name, model_dict
from models._registry import ZOOS

# The benchmark's rate for the networks made for phones; every other student starts at 0.05.
MOBILE_NETWORKS, MOBILE_LEARNING_RATE, RATE = ("MobileNetV2", "ShuffleV1", "ShuffleV2"), 0.01, 0.05
NETWORKS = ", ".join([*model_dict, *(f"{zoo}:NAME" for zoo in ZOOS)])


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, raised as UsageError."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **kwargs)

    def error(self, message):
        raise UsageError(message)


class _Help(argparse.HelpFormatter):
    """Help that states defaults, once each."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=110)

    def _get_help_string(self, action):
        shown = action.help or ""
        silent = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        return shown if silent or "default" in shown else shown + " (default %(default)s)"


def teacher_options(argv: list[str]) -> Namespace:
    """The resolved options of train_teacher.py. Raises UsageError."""
    parser = Parser(prog="train_teacher.py", description="Train a network with the labels alone.")
    group = parser.add_argument_group("what is trained")
    group.add_argument("--model", default="resnet110", type=network_name, metavar="NAME",
                       help=f"one of {NETWORKS} (default resnet110)")
    group.add_argument("-t", "--trial", type=nonnegative_int, default=0, metavar="N",
                       help="names the run and selects its random stream")
    _add_training_flags(parser, warmup=0)
    known, _ = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    parser.set_defaults(**recipes.schedule(known.recipe))
    options = parser.parse_args(argv)
    _resolve_rate(options, options.model)
    options.trial = str(options.trial)
    return options


def student_options(argv: list[str]) -> Namespace:
    """The resolved options of train_student.py: the method is read first, then the flags that it takes.

    Raises UsageError, naming the flags that apply where one belongs to another method.
    """
    known, _ = _student_parser(None).parse_known_args([a for a in argv if a not in ("-h", "--help")])
    parser = _student_parser(METHODS[known.distill])
    parser.set_defaults(**recipes.schedule(known.recipe),
                        **recipes.weights(known.recipe, known.distill, known.path_t, known.model_s))
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown[0], parser, options.distill)
    if options.path_t is None:
        raise UsageError("--path_t is missing: give a teacher's checkpoint, such as "
                         "./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth")
    _resolve_rate(options, options.model_s)
    METHODS[options.distill].resolve(options)
    if options.ikd_means == "all" and options.avg == 0:
        raise UsageError("--ikd_means all is of the IKD term, which is off: give --avg a value above 0")
    if options.teacher_cache not in ("off", "auto", "on"):
        options.teacher_cache, options.cache_dir = "on", options.teacher_cache
    return options


def network_name(text: str) -> str:
    """The name of a network that can be built."""
    try:
        return check_name(text)
    except ModelError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_method_flags(group, method):
    for flag in flags_of(method):
        group.add_argument(flag.name, type=flag.type, default=flag.default, choices=flag.choices, help=flag.help)


def _student_parser(method):
    parser = Parser(prog="train_student.py", description="Train a student with a teacher.", add_help=False)
    group = parser.add_argument_group("what is trained")
    group.add_argument("-h", "--help", action=_StudentHelp, help="show this, and the flags of every method")
    group.add_argument("--path_t", metavar="FILE",
                       help="the teacher's checkpoint (required); or torchvision:NAME, timm:NAME with their weights")
    group.add_argument("--model_s", default="resnet8", type=network_name, metavar="NAME",
                       help=f"the student, one of {NETWORKS} (default resnet8)")
    group.add_argument("--distill", default="kd", choices=METHODS, metavar="METHOD",
                       help="one of " + ", ".join(METHODS) + " (default kd)")
    group.add_argument("--trial", type=trial_name, default="1", help="names the run and selects its random stream")
    group = parser.add_argument_group("weights of the loss: r·CE + a·KD + b·method + avg·IKD")
    group.add_argument("-r", "--gamma", type=nonnegative_float, default=1.0, metavar="R",
                       help="weight of the cross-entropy with the labels")
    group.add_argument("-a", "--alpha", type=nonnegative_float, metavar="A",
                       help="weight of the KD loss; where the method has its own use for it: see below")
    group.add_argument("-b", "--beta", type=nonnegative_float, metavar="B",
                       help="weight of the method's own loss (default: the method's published value, see below)")
    group.add_argument("--avg", type=nonnegative_float, default=0.0, help="weight of the IKD term; 0: no IKD")
    group.add_argument("--intra_T", type=positive_float, default=2.0, metavar="T", help="temperature of the IKD term")
    group.add_argument("--ikd_means", default="epoch", choices=("epoch", "all"),
                       help="the class means of IKD: over the views that the first epoch shows, as published, or over "
                            "all views, from the teacher cache")
    if method:
        group = parser.add_argument_group(f"flags of --distill {method.name}")
        _add_method_flags(group, method)
    _add_training_flags(parser, warmup=20)
    group = parser.add_argument_group("teacher cache: the teacher's outputs on all views, computed once")
    group.add_argument("--teacher_cache", default="off", metavar="off|auto|on|DIR",
                       help="auto: where it pays; on: build it if need be; DIR: the same, kept there (default off)")
    group.add_argument("--cache_dtype", default="float16", choices=("float16", "float32"),
                       help="of the stored values; the teacher itself always runs in float32")
    group.add_argument("--cache_dir", default="./save/teacher_cache", metavar="DIR",
                       help="where caches are kept, shared by all runs")
    group = parser.add_argument_group("first stage")
    group.add_argument("--init_epochs", type=positive_int, default=30, metavar="N",
                       help="epochs of the first stage of factor, abound and fsp")
    return parser


def _add_training_flags(parser, warmup):
    group = parser.add_argument_group("training")
    group.add_argument("--recipe", choices=recipes.SCHEDULES, metavar="NAME",
                       help="published settings as the defaults of the flags below, and of the method's weights: "
                            + ", ".join(recipes.SCHEDULES))
    group.add_argument("--epochs", type=positive_int, default=240, metavar="N", help="epochs")
    group.add_argument("--batch_size", type=positive_int, default=64, metavar="N",
                       help="images in a step, of all processes together")
    group.add_argument("--learning_rate", type=positive_float, metavar="RATE",
                       help=f"(default {RATE}; {MOBILE_LEARNING_RATE} for {', '.join(MOBILE_NETWORKS)})")
    group.add_argument("--lr_decay_epochs", type=epoch_list, default="150,180,210", metavar="LIST",
                       help="after these epochs the rate decays")
    group.add_argument("--lr_decay_rate", type=positive_float, default=0.1, metavar="X", help="to X times itself")
    group.add_argument("--warm_up", "--wram_up", type=nonnegative_int, default=warmup, metavar="N",
                       help="epoch e < N runs at e/N of the rate")
    group.add_argument("--weight_decay", type=nonnegative_float, default=5e-4, metavar="X", help="on every parameter")
    group.add_argument("--momentum", type=unit_float, default=0.9, metavar="X", help="of SGD")
    group.add_argument("--seed", type=nonnegative_int, default=0, metavar="N", help="random seed")
    group = parser.add_argument_group("data and machine")
    group.add_argument("--dataset", default="cifar100", choices=LOADERS, metavar="NAME",
                       help="one of " + ", ".join(LOADERS) + " (default cifar100)")
    group.add_argument("--data_dir", default="./data", metavar="DIR", help="where data is, or is fetched to")
    group.add_argument("--image_size", type=positive_int, metavar="N",
                       help="imagenet, folder: height and width of what the networks see (default 224)")
    group.add_argument("--skip_unreadable", action="store_true",
                       help="tinyimagenet, imagenet, folder: read every image once at the start, and count and leave "
                            "out those that cannot be read")
    group.add_argument("--imbalance", type=up_to_one, default=1.0, metavar="X",
                       help="long tail: the last class keeps X times the first one's training images, those between "
                            "an exponential share; 1: all are kept")
    group.add_argument("--label_noise", type=unit_float, default=0.0, metavar="P",
                       help="part of the training labels that are replaced by another class's")
    group.add_argument("--data_seed", type=nonnegative_int, default=0, metavar="N",
                       help="which images --imbalance keeps and which labels --label_noise replaces; the same for all "
                            "trials")
    group.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    group.add_argument("--amp", default="none", choices=("none", "bf16"),
                       help="bf16: the networks run in bfloat16; losses and BN statistics stay in float32")
    group.add_argument("--channels_last", action="store_true", help="the memory format that convolutions prefer")
    group.add_argument("--compile", action="store_true",
                       help="the networks through torch.compile; changes the last bits")
    group.add_argument("--cuda_graph", default="auto", choices=("auto", "on", "off"),
                       help="on CUDA: a step as one graph; auto: where the method allows it")
    group.add_argument("--fast", action="store_true",
                       help="what was measured best: --channels_last, --amp bf16 where the processor has units for it, "
                            "and for students --teacher_cache auto")
    group.add_argument("--sync_bn", action="store_true",
                       help="with torchrun: batch norm over the whole batch, not over each process's share")
    group.add_argument("--tf32", default="on", choices=("on", "off"),
                       help="off: float32 convolutions on CUDA keep all their bits, slower (default on, as PyTorch)")
    group.add_argument("--deterministic", action="store_true",
                       help="on CUDA: the same bits each time, at a price; the CPU gives them anyway")
    group.add_argument("--num_workers", type=nonnegative_int, default=8, metavar="N",
                       help="processes that read images (imagenet, folder); data sets held in memory need none")
    group = parser.add_argument_group("record")
    group.add_argument("--save_dir", default="./save", metavar="DIR", help="where runs are written")
    group.add_argument("--save_freq", type=positive_int, default=40, metavar="N", help="epochs between checkpoints")
    group.add_argument("--print_freq", type=positive_int, default=100, metavar="N", help="steps between lines")
    group.add_argument("--tb_freq", type=positive_int, default=500, metavar="N",
                       help="steps between TensorBoard scalars of each loss")
    group.add_argument("--resume", default="auto", choices=("auto", "never"),
                       help="auto: go on with an unfinished run of the same folder")
    group.add_argument("--overwrite", action="store_true", help="start afresh: what the run's folder holds is lost")


def _resolve_rate(options, model):
    if options.learning_rate is None:
        options.learning_rate = MOBILE_LEARNING_RATE if model in MOBILE_NETWORKS else RATE


def _refuse(text, parser, distill):
    name = text.split("=")[0]
    owners = [method.name for method in METHODS.values() if any(flag.name == name for flag in flags_of(method))]
    own = ", ".join(flag.name for flag in flags_of(METHODS[distill])) or "none"
    if owners:
        raise UsageError(f"{name} is a flag of {', '.join(owners)}; flags of --distill {distill}: {own}")
    near = difflib.get_close_matches(name, parser._option_string_actions, 1)
    raise UsageError(f"{text} is not understood" + (f": did you mean {near[0]}?" if near else ": see --help"))


class _StudentHelp(argparse.Action):
    """Prints the common flags, then those of every method under its name and paper."""

    def __init__(self, option_strings, dest, help):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        formatter = parser.formatter_class(parser.prog)
        for method in METHODS.values():
            flags = Parser(add_help=False)
            _add_method_flags(flags, method)
            formatter.start_section(f"--distill {method.name}: {method.paper}")
            formatter.add_text(f"{method.formula}; {defaults_of(method)}")
            formatter.add_arguments(flags._actions)
            formatter.end_section()
        print(_student_parser(None).format_help() + "\n" + formatter.format_help())
        sys.exit(0)


def defaults_of(method) -> str:
    """The defaults of -a and -b, in words."""
    kd = " (added KD)" if method.alpha_adds_kd else ""
    unpublished = "" if method.beta_published else " (not published)"
    a = "no -a" if method.alpha is None else f"-a {method.alpha:g}{kd}"
    b = "no -b" if method.beta is None else f"-b {method.beta:g}{unpublished}"
    return f"{a}, {b}"


def device_of(options: Namespace) -> torch.device:
    """The device to train on, set up as `--deterministic` says; options.device becomes its name. With torchrun each
    process of a machine gets a GPU of its own and meets the others here; options.processes becomes their number.

    Raises UsageError if CUDA is asked for where there is none, or less than there are processes.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to repeat itself
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = options.tf32 == "on"
    torch.backends.cudnn.benchmark = not options.deterministic
    device = torch.device(options.device)
    if distributed.launched_world_size() > 1:
        if device.type == "cuda":
            if distributed.local_rank() >= torch.cuda.device_count():
                raise UsageError(f"this machine has {torch.cuda.device_count()} CUDA devices, one for each process: "
                                 "give torchrun as many by --nproc_per_node")
            device = torch.device("cuda", distributed.local_rank())
            torch.cuda.set_device(device)
        distributed.init(device)
        options.processes = distributed.world_size()
    return device


def check_shares(options: Namespace, data: Data) -> None:
    """Raise UsageError where the batches of an epoch, or the test images, cannot be shared among the processes."""
    count, last = distributed.world_size(), len(data.train) % options.batch_size
    if len(data.test) < count:
        raise UsageError(f"{data.name} has {len(data.test)} test images, too few for {count} processes: start fewer")
    if options.batch_size % count:
        raise UsageError(f"--batch_size {options.batch_size} cannot be shared equally by {count} processes: give a "
                         f"multiple of {count}")
    if 0 < last < count:
        raise UsageError(f"the last batch of an epoch has {last} of the {len(data.train):,} images, too few "
                         f"for {count} processes: give another --batch_size")
