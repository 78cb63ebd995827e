"""Pictures of what a student has learned from its teacher, and one page with all of them.

python scripts/analyze.py save/student_model/RUN/resnet20_last.pth
python scripts/analyze.py WITH_IKD.pth --against WITHOUT_IKD.pth --teacher TEACHER.pth --out pictures

Everything is measured on the test set. PNG files and report.html, which holds them all and loads no other file, are
written to analysis/ in the run's folder, or to --out. docs/analysis.md says what each picture shows.
"""
import os
import shlex
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

import numpy as np
import torch
from torch import Tensor

from dataset import Data
from helper.cli import Parser
from helper.evaluation import Predictions, predict
from helper.record.records import Record, read_run
from helper.record.run import RESUME_IGNORED_OPTIONS
from helper.util.errors import UsageError, guarded, printable
from helper.util.files import write_bytes
from helper.util.progress import progress
from models.checkpoint import names_weights
from scripts.analysis import cost, metrics, plots
from scripts.analysis.checkpoint import LoadedCheckpoint, add_flags, check_classes, load, need, open_checkpoint, say
from scripts.analysis.plots import LOOKS, Layout, Look
from scripts.pages import render

TSNE_CLASSES, TSNE_IMAGES, TSNE_SEED = 10, 100, 0
# Classes in the picture of the spread, at most: it has a line for each.
SPREAD_CLASSES = 200


def main():
    options = options_of(sys.argv[1:])
    need("scripts/analyze.py", "matplotlib")
    student, data, device = open_checkpoint(options)
    out = options.out or os.path.join(folder_of_run(student), "analysis")
    roles = {"teacher": teacher_of(student, options), "against": options.against}
    loaded = {role: load(path, device) for role, path in roles.items() if path} | {"student": student}
    for checkpoint in loaded.values():
        check_classes(checkpoint, data)
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out} ({error.strerror}): give another --out") from None
    test, labels = data.test_images(device), labels_of(loaded)
    say(f"{', '.join(labels.values())} on the {len(test):,} test images of {data.name}, {device.type}; pictures go to "
        f"{out}")
    networks = {role: measured(labels[role], role, checkpoint, predict(checkpoint.network, test, options.batch_size))
                for role, checkpoint in loaded.items()}
    pictures, drawings = {}, drawings_of(networks, data)
    with progress("pictures", len(drawings), file=sys.stderr) as bar:
        for name, (draw, *arguments) in drawings.items():
            pictures[name] = plots.png(draw, *arguments)
            write_bytes(os.path.join(out, f"{name}.png"), pictures[name])
            bar.update()
    report = os.path.join(out, "report.html")
    write_bytes(report, report_of(networks, data, pictures).encode(errors="backslashreplace"))
    say(f"{len(pictures)} pictures")
    print(report)


def options_of(argv):
    parser = Parser(prog="analyze.py", description="Pictures of what a student has learned from its teacher.")
    add_flags(parser)
    parser.add_argument("--teacher", metavar="CHECKPOINT", help="the teacher (default: the run's --path_t)")
    parser.add_argument("--against", metavar="CHECKPOINT",
                        help="another student to compare with, such as one without IKD")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (default: analysis/ in the run's folder)")
    return parser.parse_args(argv)


def folder_of_run(student: LoadedCheckpoint) -> Path:
    if student.record is None:
        raise UsageError(f"{student.path} lies in no folder of a run: give --out, a folder for the pictures")
    return student.record.folder


def teacher_of(student: LoadedCheckpoint, options) -> str | None:
    """The teacher's checkpoint: the one given, else the run's, else none. Raises UsageError if the run's is missing."""
    path = options.teacher or student.settings.get("path_t")
    if path and not options.teacher and not names_weights(path) and not os.path.exists(path):
        raise UsageError(f"the run's teacher {path} does not exist, seen from this folder: give --teacher")
    return path


class Measured(NamedTuple):
    """A network, how it is drawn, what its predictions say, and a student's `trials_of`.

    means: (C, C), the class-mean logits, a class a row
    """

    look: Look
    loaded: LoadedCheckpoint
    predictions: Predictions
    summary: metrics.Summary
    means: Tensor
    trials: list[list[dict]]


def measured(name: str, role: str, loaded: LoadedCheckpoint, p: Predictions) -> Measured:
    return Measured(Look(name, *LOOKS[role]), loaded, p, metrics.summary(p.logits, p.labels),
                    metrics.class_means(p.logits, p.labels, p.logits.shape[1]),
                    [] if role == "teacher" else trials_of(loaded.record))


def labels_of(loaded: dict[str, LoadedCheckpoint]) -> dict[str, str]:
    """A name for each network, such as 'resnet20, kd+IKD'; equal ones differ by their trials or files."""
    names = {role: name_of(checkpoint) for role, checkpoint in loaded.items()}
    if "teacher" in names:
        names["teacher"] = f"teacher {loaded['teacher'].network.name}"
    if names.get("against") == names["student"]:
        for role in ("against", "student"):
            trial = loaded[role].settings.get("trial")
            names[role] += f", trial {trial}" if trial is not None else f", {Path(loaded[role].path).stem}"
    if names.get("against") == names["student"]:
        names["against"] += " (--against)"
    # Between dollar signs matplotlib and the page would read a formula.
    return {role: printable(name).replace("$", "") for role, name in names.items()}


def name_of(loaded: LoadedCheckpoint) -> str:
    record = loaded.record
    return f"{loaded.network.name}, {record.method}" if record and record.is_student else loaded.network.name


def trials_of(record: Record | None) -> list[list[dict]]:
    """The epochs of a run, then those of its finished siblings: the same settings, another trial.

    A sibling whose files are damaged is left out, and said.
    """
    if record is None or not (own := epochs_of(record)):
        return []
    trials, folder = [own], record.folder.absolute()
    for path in sorted(folder.parent.glob("*/result.json")):
        try:
            sibling = read_run(path.parent) if path.parent != folder else None
        except UsageError as error:
            say(f"note      {error}; the run is left out")
            continue
        if sibling and settings_of(sibling) == settings_of(record):
            lines = epochs_of(sibling)[: len(own)]
            if [line["epoch"] for line in lines] == [line["epoch"] for line in own]:
                trials.append(lines)
    return trials


def epochs_of(record: Record) -> list[dict]:
    """The lines of log.jsonl for the network's own epochs, as far as they hold what is drawn."""
    return [line for line in record.log if line["phase"] == "train" and isinstance(line.get("losses"), dict) and all(
        isinstance(value, float | int) for value in (
            line.get("loss"), line.get("train_top1"), line.get("test_loss"), *line["losses"].values()))]


def settings_of(record: Record) -> dict:
    """What trials of one row have in common."""
    if record.is_student:
        return record.identity
    return {key: value for key, value in record.settings.items() if key not in RESUME_IGNORED_OPTIONS | {"trial"}}


def drawings_of(networks: dict[str, Measured], data: Data) -> dict[str, tuple]:
    """What draws each picture that there is data for, and of what, by its file's name, in the page's order."""
    layout = plots.layout_of(data.classes, data.superclasses)
    student, teacher, against = networks["student"], networks.get("teacher"), networks.get("against")
    everyone, students = list(networks.values()), [network for network in (against, student) if network]
    drawings: dict[str, tuple] = {}
    if student.trials:
        runs = [(m.look, m.trials) for m in students if m.trials]
        drawings["curves"] = plots.curves, runs, teacher and (teacher.look, teacher.summary.top1)
    drawings["class_means"] = plots.class_means, [(m.look, m.means) for m in (teacher, student) if m], layout
    spreads = [(m.look, m.summary.by_class["spread"]) for m in everyone]
    drawings["spread"] = plots.spread_by_class, spreads, layout.part(SPREAD_CLASSES)
    if base := against or teacher:
        pair = [(m.look, [m.summary.by_class[key] for key in ("spread", "kl")]) for m in (base, student)]
        drawings["spread_change"] = plots.spread_scatter, *pair, ["spread $S_c$", "divergence $D_c$, nats"]
    if all(m.predictions.pooled is not None for m in everyone):
        drawings["tsne"] = tsne_picture, everyone, layout.part(TSNE_CLASSES)
    if teacher:
        matrices = [(m.look, metrics.logit_correlation(m.predictions.logits)) for m in (teacher, *students)]
        drawings["correlations"] = plots.correlations, matrices[0], matrices[1:], layout
    drawings["reliability"] = plots.reliability, [
        (m.look, metrics.reliability(m.predictions.logits, m.predictions.labels), m.summary.ece) for m in everyone]
    return drawings


def tsne_picture(networks: list[Measured], layout: Layout):
    """The first TSNE_IMAGES test images of each of the layout's classes."""
    from sklearn.manifold import TSNE

    labels = networks[0].predictions.labels
    index = torch.cat([(labels == c).nonzero().flatten()[:TSNE_IMAGES] for c in layout.order])
    which = np.array([layout.order.index(c) for c in labels[index].tolist()])
    points = []
    for look, pooled in ((m.look, m.predictions.pooled) for m in networks):
        assert pooled is not None  # see drawings_of
        tsne = TSNE(random_state=TSNE_SEED, init="pca", perplexity=min(30, (len(index) - 1) / 3))
        points.append((look, tsne.fit_transform(pooled[index].numpy())))
    return plots.tsne(points, which, layout.names)


def report_of(networks: dict[str, Measured], data: Data, pictures: dict[str, bytes]) -> str:
    """report.html."""
    student, teacher = networks["student"], networks.get("teacher")
    base = networks.get("against") or teacher
    rows = [row_of(m, teacher) for m in networks.values()]
    names = {"class": data.classes} | ({"superclass": data.superclasses} if data.superclasses else {})
    columns = [(m.summary.by_class[key], form) for m in networks.values()
               for key, form in (("top1", ".1f"), ("spread", ".4f"), ("kl", ".4f"))]
    return render(
        "analysis.html", title=f"{student.look.label} on {data.name}", data=data, networks=list(networks.values()),
        student=student, teacher=teacher, base=base, pictures=pictures, date=time.strftime("%Y-%m-%d"),
        torch=torch.__version__, command=shlex.join(["python", *sys.argv]), head=list(rows[0]),
        rows=[row.values() for row in rows],
        fewer=int((student.summary.by_class["spread"] < base.summary.by_class["spread"]).sum()) if base else 0,
        tsne={"seed": TSNE_SEED, "classes": TSNE_CLASSES, "images": TSNE_IMAGES}, shown=SPREAD_CLASSES,
        bins=metrics.BINS, rare=f"{100 * plots.RARE:g}", names=len(names),
        groups=[(m.look.label, 3) for m in networks.values()],
        class_head=[*names, *["top-1, %", "spread", "D, nats"] * len(networks)],
        class_rows=[[*(printable(name[c]).replace("_", " ") for name in names.values()),
                     *(f"{column[c]:{form}}" for column, form in columns)]
                    for c in plots.layout_of(data.classes, data.superclasses).order])


def row_of(network: Measured, teacher: Measured | None) -> dict[str, str]:
    """A network's row of the first table, by the columns' titles."""
    s, p = network.summary, network.predictions
    row = {"": network.look.label, "parameters": f"{cost.parameters(network.loaded.network):,}",
           "top-1, %": f"{s.top1:.2f}", "top-5, %": f"{s.top5:.2f}", "NLL": f"{s.nll:.3f}", "ECE": f"{s.ece:.3f}",
           "spread": f"{s.spread:.4f}", "D, nats": f"{s.kl:.4f}"}
    if teacher:
        row["to m, nats"] = f"{metrics.mean(metrics.ikd_distance(p.logits, p.labels, teacher.means)):.4f}"
    return row


if __name__ == "__main__":
    guarded(main)
