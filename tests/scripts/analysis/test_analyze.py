"""scripts/analyze.py on a student of the digits, and what its pictures and its page show."""
import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from helper.record.records import read_run
from models import load_model, model_dict
from scripts.analysis import metrics, plots
from scripts.analysis.plots import LOOKS, Look, layout_of
from scripts.analyze import trials_of
from tests.support import scripts

TEACHER, AGAINST, STUDENT = (Look(name, *LOOKS[name]) for name in ("teacher", "against", "student"))


@pytest.fixture(scope="module")
def student(digits_teacher, tmp_path_factory):
    """The checkpoint of a student with IKD, in its run's folder."""
    save = tmp_path_factory.mktemp("save")
    scripts.succeed("train_student.py", "--path_t", digits_teacher, "--dataset", "digits", "--imbalance", 0.01,
                    "--batch_size", 32, "--epochs", 2, "--avg", 1, "-a", 0.9, "--warm_up", 0, "--save_dir", save)
    return scripts.only(save / "student_model") / "resnet8_last.pth"


class Reader(HTMLParser):
    """Every address that a page names, and its text."""

    def __init__(self):
        super().__init__()
        self.addresses, self.text = [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]

    def handle_data(self, data):
        self.text.append(data)


def test_it_leaves_pictures_and_one_page_that_needs_nothing_else(student, digits_teacher):
    process = scripts.succeed("scripts/analyze.py", student)
    out = student.parent / "analysis"
    assert process.stdout.strip() == str(out / "report.html")
    names = ["curves", "class_means", "spread", "spread_change", "tsne", "correlations", "reliability"]
    assert {path.name for path in out.iterdir()} == {"report.html", *(f"{name}.png" for name in names)}
    reader = Reader()
    reader.feed(html := (out / "report.html").read_text())
    assert len(reader.addresses) == 7 and "http" not in html and "@import" not in html and "url(" not in html
    for name, address in zip(names, reader.addresses, strict=True):
        content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
        assert content == (out / f"{name}.png").read_bytes()
        image = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        assert image.shape[1] > 1000 and image.std() > 10  # something is drawn
    # The first table: the teacher that args.json names, and the student, as the network itself has it.
    data = dataset.load("digits", "unused")
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.mean, data.std))
    images, labels = (data.test.images / 255 - mean) / std, data.test.labels
    for name, path in (("teacher resnet14", digits_teacher), ("resnet8, kd+IKD", student)):
        with torch.no_grad():
            logits = load_model(path)[0](images)
        s = metrics.summary(logits, labels)
        cells = [f"{s.top1:.2f}", f"{s.top5:.2f}", f"{s.nll:.3f}", f"{s.ece:.3f}", f"{s.spread:.4f}", f"{s.kl:.4f}"]
        row = re.search(rf"<tr><td[^>]*>{re.escape(name)}</td>(.*?)</tr>", html)[1]
        assert re.findall("<td>(.*?)</td>", row)[1:7] == cells


def test_trials_are_the_finished_runs_of_the_same_settings(student, tmp_path, capsys):
    def sibling(name, settings=None, finished=True):
        shutil.copytree(student.parent, tmp_path / name, ignore=shutil.ignore_patterns("analysis"))
        args = json.loads((tmp_path / name / "args.json").read_text())
        args["settings"] |= settings or {}
        (tmp_path / name / "args.json").write_text(json.dumps(args))
        if not finished:
            (tmp_path / name / "result.json").unlink()

    sibling("own")
    assert len(trials_of(read_run(tmp_path / "own"))) == 1
    sibling("second", {"trial": "2", "data_dir": "elsewhere"})
    sibling("unfinished", {"trial": "3"}, finished=False)
    sibling("longer", {"trial": "2", "epochs": 4})
    trials = trials_of(read_run(tmp_path / "own"))
    assert len(trials) == 2 and all([line["epoch"] for line in lines] == [1, 2] for lines in trials)
    assert trials_of(read_run(tmp_path)) == []
    sibling("damaged", {"trial": "4"})
    (tmp_path / "damaged" / "result.json").write_text("{}")
    capsys.readouterr()
    assert trials_of(read_run(tmp_path / "own")) == trials
    assert "damaged/result.json is damaged" in capsys.readouterr().err
    log = tmp_path / "second" / "log.jsonl"
    log.write_text("".join(json.dumps(line | {"loss": "?"}) + "\n" for line in scripts.read_log(log.parent)))
    assert len(trials_of(read_run(tmp_path / "own"))) == 1 and trials_of(read_run(tmp_path / "second")) == []


def lines(top1):
    return [{"epoch": e, "loss": 1.0, "losses": {"ce": 1.0, "ikd": e - 1.0}, "test_loss": 1.0, "test_top1": v,
             "train_top1": v} for e, v in enumerate(top1, 1)]


def test_curves_are_means_over_trials_with_a_band_of_one_deviation():
    figure = plots.curves([(STUDENT, [lines([10, 50]), lines([20, 80]), lines([60, 80])])], (TEACHER, 90.0))
    left, right = figure.axes
    test = next(line for line in right.lines if line.get_label() == "student, test")
    assert test.get_ydata().tolist() == [30.0, 70.0]
    (band,) = right.collections
    heights = band.get_paths()[0].vertices[:, 1]
    deviations = [np.std([10, 20, 60], ddof=1), np.std([50, 80, 80], ddof=1)]
    assert heights.min() == pytest.approx(min(30 - deviations[0], 70 - deviations[1]))
    assert heights.max() == pytest.approx(max(30 + deviations[0], 70 + deviations[1]))
    ikd = next(line for line in left.lines if line.get_label() == "ikd")
    assert np.isnan(ikd.get_ydata()[0]) and ikd.get_ydata()[1] == 1.0  # silent in epoch 1
    assert left.get_yscale() == "log"


def test_matrices_stand_in_the_order_of_superclasses():
    layout = layout_of(("cat", "oak", "dog", "elm"), ("pet", "a_tree", "pet", "a_tree"))
    assert layout.order == [3, 1, 0, 2] and layout.names == ["elm", "oak", "cat", "dog"]
    assert layout.groups == [("a tree", 0, 2), ("pet", 2, 4)]
    means = torch.arange(16.0).view(4, 4)
    (image,) = plots.class_means([(TEACHER, means)], layout).axes[0].images
    assert image.get_array()[0].tolist() == [15, 13, 12, 14]
    assert layout_of(("b", "a"), ()) == ([0, 1], ["b", "a"], [])


def test_the_correlation_map_shows_the_distance_to_the_teachers():
    layout = layout_of(("a", "b", "c"), ())
    base = torch.eye(3)
    near, far = base + 0.1 * (1 - base), base - 0.3 * (1 - base)
    axes = plots.correlations((TEACHER, base), [(AGAINST, far), (STUDENT, near)], layout).axes
    assert [ax.get_title() for ax in axes[:3]] == [
        "teacher", "against and the teacher,\nmean 0.300", "student and the teacher,\nmean 0.100"]
    assert axes[1].images[0].get_array()[0].tolist() == pytest.approx([0, 0.3, 0.3])
    alone = plots.correlations((TEACHER, base), [(STUDENT, near)], layout).axes
    assert [ax.get_title().split("\n")[0] for ax in alone[:3]] == ["teacher", "student", "student and the teacher,"]


@pytest.fixture(scope="module")
def figures():
    """Every picture, of three networks and three classes."""
    layout = layout_of(("a", "b", "c"), ())
    generator = torch.Generator().manual_seed(0)
    matrices = [(look, torch.randn(3, 3, generator=generator)) for look in (TEACHER, AGAINST, STUDENT)]
    values = [(look, matrix[0].abs()) for look, matrix in matrices]
    logits, labels = torch.randn(60, 3, generator=generator), torch.arange(60) % 3
    bins = [(look, metrics.reliability(logits, labels), 0.1) for look in (TEACHER, AGAINST, STUDENT)]
    points = [(look, torch.randn(60, 2, generator=generator).numpy()) for look in (TEACHER, AGAINST, STUDENT)]
    found = {
        "curves": plots.curves([(AGAINST, [lines([10, 50])]), (STUDENT, [lines([20, 60])])], (TEACHER, 90.0)),
        "class_means": plots.class_means(matrices[::2], layout),
        "spread": plots.spread_by_class(values, layout),
        "spread_change": plots.spread_scatter((AGAINST, [values[1][1]]), (STUDENT, [values[2][1]]), ["x"]),
        "tsne": plots.tsne(points, labels.numpy(), ["a", "b", "c"]),
        "correlations": plots.correlations(matrices[0], matrices[1:], layout),
        "reliability": plots.reliability(bins)}
    for figure in found.values():
        figure.draw_without_rendering()
    return found


def test_signed_values_have_a_diverging_map_with_0_in_its_middle_and_others_none(figures):
    for image in (ax.images[0] for name in ("class_means", "correlations") for ax in figures[name].axes if ax.images):
        low, high = image.get_clim()
        signed = bool((image.get_array() < 0).any())
        assert image.get_cmap().name == ("RdBu_r" if signed else "Greys") and low == (-high if signed else 0)


def test_axes_and_colour_bars_are_labelled(figures):
    for name, figure in figures.items():
        shared = " ".join(text.get_text() for text in (figure._supxlabel, figure._supylabel) if text)
        labels = [ax.get_xlabel() + ax.get_ylabel() + shared for ax in figure.axes]
        if name == "reliability":  # its columns share an axis, and so do its rows
            labels = [labels[0], *labels[3:]]
        assert all(labels), name


def test_legends_cover_nothing(figures):
    for name, figure in figures.items():
        legends = [*figure.legends, *(legend for ax in figure.axes if (legend := ax.get_legend()))]
        boxes = [ax.get_window_extent() for ax in figure.axes]
        assert not any(legend.get_window_extent().overlaps(box) for legend in legends for box in boxes), name


def test_networks_and_loss_terms_differ_by_colour_and_by_dashes(figures):
    left, right = figures["curves"].axes
    left.set_ylim(0.01, 20)
    assert left.yaxis.get_major_formatter()(0.02) == "0.02"
    for ax in (left, right):
        styles = [(line.get_color(), line.get_linestyle()) for line in ax.lines]
        assert len(set(styles)) == len(styles)
    assert len({look.line for look in (TEACHER, AGAINST, STUDENT)}) == 3
    assert {look.colour for look in (TEACHER, AGAINST, STUDENT)} <= set(plots.COLOURS)


def test_a_picture_with_a_line_for_each_class_shows_evenly_spaced_ones_of_many():
    part = layout_of(tuple(f"class{i}" for i in range(1000)), ()).part(200)
    assert part.order == list(range(0, 1000, 5)) and part.names[1] == "class5"
    assert layout_of(("b", "a"), ("x", "y")).part(2).groups == [("x", 0, 1), ("y", 1, 2)]


def test_names_of_classes_are_no_formulas_and_hold_no_control_characters():
    figure = plots.tsne([(STUDENT, np.zeros((2, 2)))], np.array([0, 1]), layout_of(("$\\x$", "a\x1bb"), ()).names)
    assert plots.png(lambda: figure)[:4] == b"\x89PNG"
    assert layout_of(("$a$", "a\x1bb"), ()).names == [r"\$a\$", r"a\x1bb"]


def test_the_scatter_counts_the_classes_that_are_smaller():
    values = torch.tensor([1.0, 2.0, 3.0, torch.nan])
    figure = plots.spread_scatter((AGAINST, [values]), (STUDENT, [torch.tensor([0.5, 2.5, 2.0, 1.0])]), ["x"])
    assert figure.axes[0].get_title() == "x\nsmaller for student in 2 of 3 classes"


@pytest.mark.parametrize("flags, says", [
    (["{bare}", "--dataset", "digits"], "lies in no folder of a run: give --out"),
    (["{student}", "--teacher", "gone.pth"], "gone.pth does not exist"),
    (["{student}", "--against", "{hundred}"], "has 100 classes, digits has 10: give the --dataset"),
    (["{student}", "--out", "{hundred}"], "give another --out"),
    (["{moved}"], "teacher nowhere/t.pth does not exist, seen from this folder: give --teacher"),
])
def test_bad_input_is_one_line_and_writes_nothing(student, tmp_path, flags, says):
    torch.save(model_dict["resnet8"](num_classes=100).state_dict(), tmp_path / "hundred.pth")
    torch.save(load_model(student)[0].state_dict(), tmp_path / "bare.pth")
    moved = tmp_path / "run" / "resnet8_last.pth"
    shutil.copytree(student.parent, moved.parent, ignore=shutil.ignore_patterns("analysis"))
    args = json.loads((moved.parent / "args.json").read_text())
    args["settings"]["path_t"] = "nowhere/t.pth"
    (moved.parent / "args.json").write_text(json.dumps(args))
    before = sorted(tmp_path.rglob("*"))
    names = {"bare": tmp_path / "bare.pth", "hundred": tmp_path / "hundred.pth", "student": student, "moved": moved}
    process = scripts.run("scripts/analyze.py", *(flag.format(**names) for flag in flags))
    assert process.returncode == 2 and not process.stdout
    assert process.stderr.count("\n") == 1 and says in process.stderr
    assert sorted(tmp_path.rglob("*")) == before
