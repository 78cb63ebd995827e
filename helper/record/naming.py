"""The published names of a run's folders, and its loss in words."""
from argparse import Namespace

import dataset
from distiller_zoo import Method, Stage
from helper.record.records import label

TEACHER_FOLDERS = ("models", "tensorboard")
STUDENT_FOLDERS = ("student_model", "student_tensorboards")


def student_folder(o: Namespace, teacher_name: str) -> str:
    """The name of a student's folder."""
    return (f"S:{o.model_s}_T:{teacher_name}_{dataset.title(o)}_{o.distill}_r:{o.gamma}_a:{o.alpha}_b:{o.beta}"
            f"_intrat:{o.intra_T}_avg:{o.avg}_{o.trial}")


def teacher_folder(o: Namespace) -> str:
    """The name of a teacher's folder."""
    return f"{o.model}_{dataset.title(o)}_lr_{o.learning_rate}_decay_{o.weight_decay}_trial_{o.trial}"


def scalars_folder(name: str, settings: dict) -> str:
    """The name of a run's scalars, which TensorBoard shows: a student's begins with its loss, as 'dkd+IKD_S:...'."""
    return f"{label(settings)}_{name}" if "distill" in settings else name


def loss_in_words(method: type[Method], terms: list[str], stage: Stage | None, o: Namespace) -> str:
    """The resolved loss, as '1·CE + dkd [T²·(a·TCKD + b·NCKD); a=1, b=8, kd_T=4.0] + 6.5·IKD(T=1)'; before it a
    method's first stage, as 'first 30 epochs of 1·boundaries, then'."""
    flags = [f"{flag.name[2:]}={getattr(o, flag.name[2:])}" for flag in method.flags]
    own = ", ".join([f"a={o.alpha:g}", f"b={o.beta:g}", *flags, *([f"ramp={o.ramp}"] if o.ramp else [])])
    words = {"ce": f"{o.gamma:g}·CE", "kd": f"{o.alpha:g}·KD(T={getattr(o, 'kd_T', '')})",
             "ikd": f"{o.avg:g}·IKD(T={o.intra_T:g})"} | {method.name: f"{method.name} [{method.formula}; {own}]"}
    first = f"first {o.init_epochs} epochs of {stage.weight:g}·{stage.name}, then " if stage else ""
    return first + " + ".join(words[name] for name in terms)
