"""Pictures of what a student has learned from its teacher, and one page with all of them.

python scripts/analyze.py save/student_model/RUN/resnet20_last.pth
python scripts/analyze.py WITH_IKD.pth --against WITHOUT_IKD.pth --teacher TEACHER.pth --out pictures

Everything is measured on the test set. PNG files and report.html, which holds them all and needs no network, go to
the run's folder, into analysis/, or to --out. docs/analysis.md says what each picture shows.
"""
import os
import shlex
import sys
import time
from html import escape
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import Tensor

from dataset import Data
from helper.cli import Parser
from helper.evaluation import Predictions, predict
from helper.record.records import label
from helper.record.run import RESUME_IGNORED_OPTIONS
from helper.util.errors import UsageError, guarded
from helper.util.files import write_bytes
from scripts import pages
from scripts.analysis import cost, metrics
from scripts.analysis.checkpoint import (
    LoadedCheckpoint,
    Record,
    add_flags,
    need,
    open_another,
    open_subject,
    read_record,
    say,
)

TSNE_CLASSES, TSNE_IMAGES, TSNE_SEED = 10, 100, 0


def main():
    options = options_of(sys.argv[1:])
    need("scripts/analyze.py", "matplotlib")
    subject, data, device = open_subject(options)
    out = options.out or os.path.join(folder_of_run(subject, options), "analysis")
    teacher = teacher_of(subject.record, options)
    roles = {"teacher": teacher and open_another(teacher, data, device),
             "against": options.against and open_another(options.against, data, device), "student": subject}
    roles = {role: member for role, member in roles.items() if member}
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out} ({error.strerror}): give another --out") from None
    say(f"{', '.join(member.network.name for member in roles.values())} on the {len(data.test):,} test images of "
        f"{data.name}, {device.type}; then the pictures, into {out}")
    test, labels = data.test_images(device), labels_of(roles)
    networks = {role: measured(labels[role], role, member, predict(member.network, test, options.batch_size))
            for role, member in roles.items()}
    pictures = {}
    for name, title, draw, caption in pictures_of(networks, data):
        say(f"drawing {name}")
        pictures[name] = (title, draw(), caption)
        write_bytes(os.path.join(out, f"{name}.png"), pictures[name][1])
    report = os.path.join(out, "report.html")
    write_bytes(report, report_of(networks, data, pictures).encode())
    say(f"{len(pictures)} pictures")
    print(report)


def options_of(argv):
    parser = Parser(prog="analyze.py", description="Pictures of what a student has learned from its teacher.")
    add_flags(parser)
    parser.add_argument("--teacher", metavar="CHECKPOINT", help="(default: the run's --path_t)")
    parser.add_argument("--against", metavar="CHECKPOINT",
                        help="another student to compare with, such as one without IKD")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (default: analysis/ in the run's folder)")
    return parser.parse_args(argv)


def folder_of_run(subject: LoadedCheckpoint, options) -> str:
    if not subject.record.args:
        raise UsageError(f"{options.checkpoint} lies in no folder of a run: give --out, a folder for the pictures")
    return subject.record.folder


def teacher_of(record: Record, options) -> str | None:
    """The teacher's checkpoint: the one given, else the run's, else none. Raises UsageError if it has gone."""
    path = options.teacher or record.settings.get("path_t")
    if path and not options.teacher and not os.path.exists(path):
        raise UsageError(f"the run's teacher {path} is not there, seen from this folder: give --teacher")
    return path


class Measured(NamedTuple):
    """A network, how it is drawn (plots.Look), and what its predictions say; spread and kl: (C,)."""

    look: tuple
    subject: LoadedCheckpoint
    predictions: Predictions
    summary: metrics.Summary
    spread: Tensor
    kl: Tensor


def measured(name: str, role: str, subject: LoadedCheckpoint, p: Predictions) -> Measured:
    from scripts.analysis.plots import LOOKS, Look
    return Measured(Look(name, *LOOKS[role]), subject, p, metrics.summary(p.logits, p.labels),
                    metrics.within_class_spread(p.logits, p.labels), metrics.within_class_kl(p.logits, p.labels))


def labels_of(roles: dict[str, LoadedCheckpoint]) -> dict[str, str]:
    """A name for each network, such as 'resnet20, kd+IKD'; equal ones are told apart by their trials or files."""
    names = {role: name_of(member) for role, member in roles.items()}
    if "teacher" in names:
        names["teacher"] = f"teacher {roles['teacher'].network.name}"
    if names.get("against") == names["student"]:
        for role in ("against", "student"):
            trial = roles[role].record.settings.get("trial")
            names[role] += f", trial {trial}" if trial is not None else f", {Path(roles[role].path).stem}"
    if names.get("against") == names["student"]:
        names["against"] += " (--against)"
    return names


def name_of(subject: LoadedCheckpoint) -> str:
    settings = subject.record.settings
    return f"{subject.network.name}, {label(settings)}" if "distill" in settings else subject.network.name


def trials_of(record: Record) -> list[list[dict]]:
    """The epochs of a run, then those of its finished siblings: the same settings, another trial."""
    def epochs(r):
        return [line for line in r.log if line["phase"] == "train"]

    def same(r):
        return {k: v for k, v in r.settings.items() if k not in RESUME_IGNORED_OPTIONS | {"trial"}}

    own = epochs(record)
    trials = [own] if own else []
    folder = Path(record.folder).absolute()
    for sibling in sorted(folder.parent.glob("*/result.json")):
        if own and sibling.parent != folder:
            other = read_record(str(sibling.parent))
            if same(other) == same(record):
                trials.append(epochs(other)[: len(own)])
    return trials


def pictures_of(networks: dict[str, Measured], data: Data):
    """(file's name, title, what draws it, caption in HTML) of each picture there is something to draw for."""
    from scripts.analysis import plots
    from scripts.pages import formula as f
    layout = plots.layout_of(data.classes, data.superclasses)
    student, teacher, against = networks["student"], networks.get("teacher"), networks.get("against")
    everyone, students = list(networks.values()), [network for network in (against, student) if network]
    order = ("Classes stand by superclass, thin lines between them." if data.superclasses else
             "Classes stand in the data's order.")

    runs = [(network.look, trials) for network in students if (trials := trials_of(network.subject.record))]
    if runs and runs[-1][0] is student.look:
        yield ("curves", "The run", lambda: plots.png(
            plots.curves, runs, teacher and (teacher.look, teacher.summary.top1)), curves_caption(runs))

    shown = teacher or student
    yield ("class_means", "Class-mean logits", lambda: plots.png(
        plots.class_means, class_mean_logits(shown), layout, shown.look),
        f"Row {f('c')} is {f('m_c = (1/n_c) Σ_{i: y_i=c} z_i')}, the mean logits of the test images of class "
        f"{f('c')}. Such a row, of the teacher's logits over the training views of the first epoch, is what IKD pulls "
        f"every student's prediction for that class towards. {order} Dark off the diagonal: classes that look alike to "
        "the network. The shades span what lies off the diagonal; the diagonal itself is beyond them.")

    yield ("spread", "Spread within each class", lambda: plots.png(
        plots.spread_by_class, [(network.look, network.spread) for network in everyone], layout),
        f"{f('S_c = (1/n_c) Σ_{i: y_i=c} ‖p_i − p̄_c‖²')}, with the softmax predictions {f('p_i')} for the class's "
        f"test images and their mean {f('p̄_c')}: the further to the left, the more alike the images of a class are "
        "answered, which is what IKD is for. Sure and right, and sure of one wrong class, both give 0, so read it "
        f"beside the accuracy. {order}")

    base = against or teacher
    if base:
        yield ("spread_change", f"Within a class: {base.look.label} and {student.look.label}", lambda: plots.png(
            plots.spread_scatter, (base.look, [base.spread, base.kl]), (student.look, [student.spread, student.kl]),
            ["spread $S_c$", "divergence $D_c$, nats"]),
            "A point a class. Below the line, in the tinted half, its predictions lie closer together for "
            f"{escape(student.look.label)} than for {escape(base.look.label)}. Left: the spread of the picture before. "
            f"Right: {f('D_c = (1/n_c) Σ_{i: y_i=c} KL(p_i ‖ p̄_c)')}, the same question in nats, in which small "
            "probabilities count too.")

    yield "tsne", "Pooled features", lambda: tsne_picture(everyone, data, layout), tsne_caption(data)

    if teacher:
        matrices = {network.look: metrics.logit_correlation(network.predictions.logits) for network in everyone}
        yield ("correlations", "Correlation of logits", lambda: plots.png(
            plots.correlations, (teacher.look, matrices[teacher.look]),
            [(network.look, matrices[network.look]) for network in students], layout),
            f"{f('ρ(j, k)')} is Pearson's correlation, over all test images, of the logits of classes {f('j')} and "
            f"{f('k')}. {order} The difference to the teacher's is shown as {f('|ρ − ρ_{teacher}|')}: the paler, the "
            "more of the teacher's view of which classes go together has come across. Its mean is over "
            f"{f('j ≠ k')}; the shades end at the 99.5th percentile.")

    bins = [(m.look, metrics.reliability(m.predictions.logits, m.predictions.labels), m.summary.ece) for m in everyone]
    yield ("reliability", "Calibration", lambda: plots.png(plots.reliability, bins),
           f"The test images in {metrics.BINS} bins of confidence, {f('max_k p(k)')}. A bar that ends at its black "
           "mark is calibrated: of the answers given with 70&nbsp;% confidence 70&nbsp;% are right; a mark above the "
           f"bar is overconfidence. {f('ECE = Σ_b (n_b/N) |accuracy_b − confidence_b|')}, 0 at best. Below: where the "
           f"images are; a bin with less than {100 * plots.RARE:g}&nbsp;% of them is pale above.")


def class_mean_logits(network: Measured) -> Tensor:
    """(C, C), a class a row."""
    logits = network.predictions.logits
    return metrics.class_means(logits, network.predictions.labels, logits.shape[1])


def curves_caption(runs) -> str:
    counts = "; ".join(f"{escape(look.label)}: {len(trials)} trial{'s' if len(trials) > 1 else ''}"
                       for look, trials in runs)
    bands = ("" if all(len(trials) == 1 for _, trials in runs) else
             " Lines are means over trials of equal settings, bands one standard deviation (of <i>n</i> − 1) to each "
             "side.")
    return ("From log.jsonl, once an epoch. Left: each term of the loss as it counts in the sum, and the test "
            f"cross-entropy, of {escape(runs[-1][0].label)}. Right: accuracy. {counts}.{bands}")


def tsne_classes(data: Data, layout) -> list[int]:
    """Up to TSNE_CLASSES classes, evenly spaced in the layout's order."""
    number = min(TSNE_CLASSES, len(data.classes))
    return [layout.order[k * len(data.classes) // number] for k in range(number)]


def tsne_picture(networks: list[Measured], data: Data, layout) -> bytes:
    from sklearn.manifold import TSNE

    from scripts.analysis import plots
    chosen, labels = tsne_classes(data, layout), networks[0].predictions.labels
    index = torch.cat([(labels == c).nonzero().flatten()[:TSNE_IMAGES] for c in chosen])
    place = {c: k for k, c in enumerate(chosen)}
    points = [TSNE(random_state=TSNE_SEED, init="pca", perplexity=min(30, (len(index) - 1) / 3)).fit_transform(
        network.predictions.pooled[index].numpy()) for network in networks]
    names = [layout.names[layout.order.index(c)] for c in chosen]
    return plots.png(plots.tsne, [(network.look, p) for network, p in zip(networks, points, strict=True)],
                        np.array([place[c] for c in labels[index].tolist()]), names)


def tsne_caption(data: Data) -> str:
    few = ("All classes" if len(data.classes) <= TSNE_CLASSES
           else f"{TSNE_CLASSES} of the {len(data.classes)} classes, evenly spaced in the order of the other pictures")
    return (f"t-SNE (scikit-learn, from the principal components, seed {TSNE_SEED}) of the vectors that the "
            f"classifier reads. {few}, at most the first {TSNE_IMAGES} test images of each. Only which points are "
            "neighbours means something; distances between clusters, their sizes and the orientation do not.")


def report_of(networks: dict[str, Measured], data: Data, pictures: dict) -> str:
    """report.html."""
    student, teacher = networks["student"], networks.get("teacher")
    title = f"{student.look.label} on {data.name}"
    head = ["", "parameters", "top-1, %", "top-5, %", "NLL", "ECE", "spread", "D, nats"]
    rows = [[m.look.label, f"{cost.parameters(m.subject.network):,}", f"{s.top1:.2f}", f"{s.top5:.2f}", f"{s.nll:.3f}",
             f"{s.ece:.3f}", f"{s.spread:.4f}", f"{s.kl:.4f}"] for m in networks.values() for s in [m.summary]]
    if teacher:
        means = class_mean_logits(teacher)
        head.append("to m, nats")
        for row, network in zip(rows, networks.values(), strict=True):
            distance = metrics.ikd_distance(network.predictions.logits, network.predictions.labels, means)
            row.append(f"{metrics.mean(distance):.4f}")
    parts = [f"<h1>{escape(title)}</h1>", facts(networks, data), pages.table(head, rows),
             "<p>" + in_short(networks, len(data.classes)) + "</p>"]
    for name, (heading, image, caption) in pictures.items():
        parts += [f"<h2>{escape(heading)}</h2>", pages.figure(image, f"{heading} ({name}.png)", caption)]
    parts += ["<h2>Every class</h2>", class_table(networks, data)]
    return pages.page(title, parts)


def facts(networks, data) -> str:
    where = "; ".join(f"{network.look.label}: {network.subject.path}" for network in networks.values())
    return (f'<p class="facts">{len(data.test):,} test images, {len(data.classes)} classes. {escape(where)}.<br>'
            f"{time.strftime('%Y-%m-%d')}, PyTorch {torch.__version__}, "
            f"<code>{escape(shlex.join(['python', *sys.argv]))}</code></p>")


def in_short(networks: dict[str, Measured], classes: int) -> str:
    """What the table's last columns are, and how the spread changed, in a few sentences of HTML."""
    from scripts.pages import formula as f
    student, base = networks["student"], networks.get("against") or networks.get("teacher")
    text = (f"Spread and {f('D')} say how far the predictions for images of one class lie apart: means over the "
            "classes of what is defined below. ")
    if "teacher" in networks:
        text += (f"To {f('m')} is IKD's own distance at {f('T')} = 1, {f('KL(softmax m_y ‖ p)')}, to the teacher's "
                 "class-mean logits. ")
    if base:
        fewer = int((student.spread < base.spread).sum())
        text += (f"Against {escape(base.look.label)}, the spread of {escape(student.look.label)} is smaller in "
                 f"{fewer} of {classes} classes; its mean goes from {base.summary.spread:.4f} to "
                 f"{student.summary.spread:.4f}, the top-1 accuracy from {base.summary.top1:.2f} to "
                 f"{student.summary.top1:.2f}.")
    return text


def class_table(networks: dict[str, Measured], data: Data) -> str:
    """Every class with each network's accuracy and consistency."""
    from scripts.analysis.plots import layout_of
    names = [data.classes] + ([data.superclasses] if data.superclasses else [])
    head, columns = ["class", "superclass"][: len(names)], []
    for network in networks.values():
        head += ["top-1, %", "spread", "D, nats"]
        columns += [(metrics.class_accuracy(network.predictions.logits, network.predictions.labels), ".1f"),
                    (network.spread, ".4f"), (network.kl, ".4f")]
    rows = [[*(column[c].replace("_", " ") for column in names), *(f"{column[c]:{form}}" for column, form in columns)]
            for c in layout_of(data.classes, data.superclasses).order]
    return pages.table(head, rows, len(names), tuple((network.look.label, 3) for network in networks.values()))


if __name__ == "__main__":
    guarded(main)
