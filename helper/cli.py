"""The command lines of both scripts: parsed, resolved and frozen; no file but --config is opened here."""
import argparse
import difflib
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from distiller_zoo import METHODS, flags_of
from helper import flags
from helper.record import recipes
from helper.util.errors import UsageError


class Options(Namespace):
    """Every option of a run, resolved; nothing writes to them afterwards."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def __setattr__(self, name, value):
        raise AttributeError(f"options are frozen after parsing: {name} cannot be set")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, raised as UsageError."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=lambda prog: _Help(prog, max_help_position=30), **kwargs)

    def parse_args(self, args=None, namespace=None):
        """As argparse. With --dry_run a script that has no meaning of its own for it shows the options, and ends."""
        if "--dry_run" in self._option_string_actions:
            return super().parse_args(args, namespace)
        self.add_argument("--dry_run", action="store_true", help="show the options, and do nothing")
        options = super().parse_args(args, namespace)
        dry_run = options.dry_run
        del options.dry_run
        if dry_run:
            show(options)
        return options

    def error(self, message):
        raise UsageError(message)


class _Help(argparse.HelpFormatter):
    """Help that states defaults, once each, as wide as the terminal."""

    def _get_help_string(self, action):
        shown = action.help or ""
        silent = action.default in (None, False, "", argparse.SUPPRESS)
        return shown if silent or "default" in shown else shown + " (default %(default)s)"


def teacher_options(argv: list[str]) -> Options:
    """The options of train_teacher.py. Raises UsageError."""
    return parse_teacher(argv)[0]


def student_options(argv: list[str]) -> Options:
    """The options of train_student.py. Raises UsageError, MethodError."""
    return parse_student(argv)[0]


def parse_teacher(argv: list[str]) -> tuple[Options, list[str]]:
    """The options of train_teacher.py, and lines of what is worth a look. Raises UsageError."""
    argv = _with_config(argv)
    parser = Parser(prog="train_teacher.py", usage="%(prog)s [--model NAME] [options]",
                    description="Train a network with the labels alone.")
    flags.add_teacher_flags(parser)
    flags.add_training_flags(parser, warmup=0)
    known, _ = parser.parse_known_args(_without_help(argv))
    parser.set_defaults(**recipes.schedule(known.recipe))
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown, parser, ())
    _resolve_optimizer(options, options.model)
    options.trial = str(options.trial)
    notes = _schedule_warnings(options)
    return _frozen(options, notes), notes


def parse_student(argv: list[str]) -> tuple[Options, list[str]]:
    """The options of train_student.py, and lines of what is worth a look. The method is read first, then its flags.

    Raises UsageError, naming the flags that apply where one belongs to another method; MethodError.
    """
    argv = _with_config(argv)
    known, _ = _student_parser(None).parse_known_args(_without_help(argv))
    method = METHODS[known.distill]
    parser = _student_parser(method)
    ignored = flags.add_ignored_flags(parser, method)
    parser.set_defaults(**recipes.schedule(known.recipe),
                        **recipes.weights(known.recipe, known.distill, known.path_t, known.model_s))
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown, parser, flags_of(method))
    if options.path_t is None:
        raise UsageError("--path_t is missing: give a teacher's checkpoint, such as "
                         "./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth")
    given = {word.split("=")[0] for word in argv}
    unread = [name for name in ignored if name in given]
    for name in unread:
        delattr(options, name[2:])
    _resolve_optimizer(options, options.model_s)
    method.resolve(options)
    if options.teacher_cache not in ("off", "auto", "on"):
        options.teacher_cache, options.cache_dir = "on", options.teacher_cache
    elif options.fast and "--teacher_cache" not in given:
        options.teacher_cache = "auto"
    notes = _student_notes(options, given, unread)
    return _frozen(options, notes), notes


def defaults_of(method) -> str:
    """The defaults of -a and -b, in words."""
    kd = " (added KD)" if method.alpha_adds_kd else ""
    unpublished = "" if method.beta_published else " (not published)"
    a = "no -a" if method.alpha is None else f"-a {method.alpha:g}{kd}"
    b = "no -b" if method.beta is None else f"-b {method.beta:g}{unpublished}"
    return f"{a}, {b}"


def _frozen(options, notes):
    """The options, frozen; with --dry_run they are shown, and the script ends."""
    dry_run = options.dry_run
    del options.config, options.dry_run
    if dry_run:
        show(options, notes)
    return Options(**vars(options))


def show(options: Namespace, notes: Sequence[str] = ()) -> NoReturn:
    """Print options and notes, and end the script."""
    for name, value in vars(options).items():
        print(f"{name:<16}{value}")
    print("\n".join(notes))
    sys.exit(0)


def _student_parser(method):
    parser = Parser(prog="train_student.py", description="Train a student with a teacher.", add_help=False,
                    usage="%(prog)s --path_t FILE [--distill METHOD] [options]")
    parser.add_argument("-h", "--help", action=_StudentHelp, nargs="?", default=argparse.SUPPRESS, metavar="METHOD",
                        help="show this, or a method's flags")
    flags.add_student_flags(parser)
    if method:
        flags.add_method_flags(parser.add_argument_group(f"flags of --distill {method.name}"), method)
    flags.add_training_flags(parser, warmup=20)
    return parser


def _without_help(argv):
    return [word for word in argv if word not in ("-h", "--help")]


def _with_config(argv):
    """The command line with that of `--config` before it, whose flags are thus the weaker ones. Raises UsageError."""
    parser = Parser(add_help=False)
    parser.add_argument("--config")
    path = parser.parse_known_args(argv)[0].config
    if path is None:
        return argv
    try:
        with open(path, encoding="utf-8") as file:
            held = json.load(file)
        # In bfloat16 where --fast came to that, so that another machine repeats it too.
        decided = {"amp": "bf16"} if held.get("decisions", {}).get("amp") == "bf16" else {}
        settings = held["settings"] | decided
        words = []
        for name, value in settings.items():
            if value is None or value is False or name in ("overwrite", "resume"):
                continue
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            words.append(f"--{name}" if value is True else f"--{name}={text}")
        return [*words, *argv]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"--config {path} cannot be read as an args.json ({error}): give the one of a run") from None


def _resolve_optimizer(o, model):
    if o.learning_rate is None:
        o.learning_rate = flags.MOBILE_LEARNING_RATE if model in flags.MOBILE_NETWORKS else flags.LEARNING_RATE
    dot = getattr(o, "optimizer", "sgd") == "dot"
    if o.nesterov and (dot or o.momentum == 0):
        raise UsageError("--nesterov is for --optimizer sgd with a --momentum above 0: leave it out")
    if dot and not o.dot_delta <= o.momentum < 1 - o.dot_delta:
        raise UsageError(f"--dot_delta {o.dot_delta:g}: both momenta, {o.momentum:g} ± {o.dot_delta:g}, must lie in "
                         "[0, 1): give a smaller one")


def _refuse(unknown, parser, own):
    text = unknown[0]
    name = text.split("=")[0]
    owners = [method.name for method in METHODS.values() if any(f.name == name for f in flags_of(method))]
    if owners and own:
        raise UsageError(f"{name} is a flag of {', '.join(owners)}; flags of this method: "
                         + ", ".join(flag.name for flag in own))
    if text.isdecimal() and "--lr_decay_epochs" in sys.argv:
        raise UsageError(f"{text} is not understood: epochs are given with commas, such as --lr_decay_epochs "
                         "150,180,210")
    near = [flags.FLAG_WORDS[name]] if name in flags.FLAG_WORDS else difflib.get_close_matches(
        name, parser._option_string_actions, 1)
    raise UsageError(f"{text} is not understood" + (f": did you mean {near[0]}?" if near else ": see --help"))


def _schedule_warnings(o):
    warnings = []
    if o.warm_up > 1 and o.warm_up >= o.epochs:
        warnings.append(f"--warm_up {o.warm_up} fills all {o.epochs} epochs: the full learning rate is "
                        f"{'reached in the last' if o.warm_up == o.epochs else 'never reached'}")
    late = [epoch for epoch in o.lr_decay_epochs if epoch >= o.epochs]
    if late:
        warnings.append(f"--lr_decay_epochs: with {o.epochs} epochs the learning rate never decays after epoch "
                        f"{', '.join(map(str, late))}")
    return [f"warning   {line}" for line in warnings]


def _student_notes(o, given, unread):
    lines = _schedule_warnings(o)
    if o.avg == 0:
        lines += [f"warning   --{name} has no effect without the IKD term: give --avg"
                  for name in ("intra_T", "ikd_means") if f"--{name}" in given]
    elif o.epochs == 1:
        lines.append("warning   --avg has no effect in one epoch: IKD begins with the second")
    if o.avg == 0 and o.warm_up > 1 and not {"--warm_up", "--wram_up", "--recipe"} & given:
        lines.append(f"note      a warm-up of {o.warm_up} epochs, as in IKD's code; the CRD benchmark has none: "
                     "--warm_up 0")
    if unread:
        lines.append(f"note      {', '.join(unread)}: not read by {o.distill}, ignored")
    recipe = recipes.note(o)
    return lines + ([f"note      {recipe}"] if recipe else [])


class _StudentHelp(argparse.Action):
    """Prints the common flags and a line for each method, or the flags of one method."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values is None:
            print(_student_parser(None).format_help() + "\nmethods (--help METHOD shows the flags of one):")
            for name, method in METHODS.items():
                print(f"  {name:<12}{method.paper.split(', ')[0]}: {defaults_of(method)}")
            sys.exit(0)
        try:
            method = METHODS[flags.method_name(values)]
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"--help {values}: {error}") from None
        own = Parser(add_help=False, prog="", usage=argparse.SUPPRESS)
        flags.add_method_flags(own.add_argument_group("flags"), method)
        print(f"--distill {method.name}: {method.paper}\n{method.formula}; {defaults_of(method)}\n")
        print(own.format_help(), end="")
        sys.exit(0)
