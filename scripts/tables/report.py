"""The report of a table: HTML, Markdown, LaTeX, CSV and JSON, from the folders of its runs."""
import csv
import io
import json
import os
from dataclasses import dataclass, field

from helper.record.records import read_records
from helper.util.errors import UsageError, printable
from helper.util.files import write_bytes, write_json
from scripts import pages
from scripts.tables import plots
from scripts.tables.aggregate import LEVEL, RESAMPLES, SEED, Row, rows_of, table
from scripts.tables.hparams import write_hparams
from scripts.tables.latex import latex
from scripts.tables.words import arrow, figure_words, settings_rows, settings_words, sources, teacher_value, value

FILES = ("report.md", "report.tex", "report.csv", "report.json", "report.html")


@dataclass
class Part:
    """A part of the report: a heading, then any of a paragraph, a table (its first row the head), a curve (an SVG
    element), lines on what is missing, notes, and command lines.

    folded: whether the page shows only the heading until it is asked for the rest
    """

    title: str
    text: str = ""
    rows: list[list[str]] = field(default_factory=list)
    picture: str = ""
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    folded: bool = False


def write_report(save_dir: str, out: str, asked: dict | None, with_significance: bool, hparams: bool) -> list[str]:
    """Write FILES into the folder `out`; a line for each thing that could not be read or drawn.

    hparams: whether TensorBoard's folders get what its HPARAMS page shows
    asked: what Table.record gives, so that runs that are not there are shown as missing; None: all finished runs
    Raises UsageError where there is nothing to report.
    """
    records, faults = read_records(save_dir)
    rows = rows_of(records, save_dir, asked["runs"] if asked else None)
    if not any(row.records or row.failed for row in rows):
        raise UsageError(f"no finished student {'of this table ' if asked else ''}under {save_dir}/student_model: "
                         "train one, or give --save_dir")
    content = table(asked["title"] if asked else "All finished runs", rows, with_significance)
    parts = parts_of(content, rows)
    os.makedirs(out, exist_ok=True)
    write_json(os.path.join(out, "report.json"), content)
    for name, text in (("report.tex", latex(content)), ("report.csv", as_csv(content)),
                       *((page, pages.render(page, title=content["title"], parts=parts, cautions=content["cautions"]))
                         for page in ("report.md", "report.html"))):
        write_bytes(os.path.join(out, name), text.encode(errors="backslashreplace"))
    if hparams:
        write_hparams(rows)
    if not plots.available():
        faults.append("report.html has no curves: they need matplotlib, pip install -r requirements-extras.txt")
    return faults


def parts_of(content: dict, rows: list[Row]) -> list[Part]:
    """The report's parts, in order."""
    parts = [overview(content)] if len(content["pairs"]) > 1 else []
    for block in content["pairs"]:
        own = [row for row in rows if row.pair == block["pair"] and row.records]
        picture = plots.accuracy_curves(block["pair"], own) if own and plots.available() else ""
        parts.append(pair_part(block, picture))
    if content["significance"] is not None:
        parts.append(significance_part(content["significance"]))
    settings = [["method", "pairs", "settings"], *settings_rows(content)]
    return [*parts, Part("Settings of the rows", rows=settings, folded=True), sources_part(content),
            Part("Command lines", commands=[printable(command) for command in content["commands"]], folded=True)]


def overview(content) -> Part:
    """Methods against pairs, the last accuracy."""
    blocks = content["pairs"]
    names = dict.fromkeys(row["name"] for block in blocks for row in block["rows"])
    by_name = [{row["name"]: row for row in block["rows"]} for block in blocks]
    lines = [[name, *(f"{value(found[name], 'last')} ({found[name]['last']['n']})" if name in found else "—"
                      for found in by_name)] for name in names]
    return Part("Last accuracy", "Test accuracy in percent at the last epoch: mean ± sample standard deviation over "
                "trials (their number).", [["method", *(arrow(block["pair"]) for block in blocks)],
                                           ["teacher", *map(teacher_value, blocks)], *lines])


def pair_part(block: dict, picture: str) -> Part:
    measured, known = block["teacher_top1"], block["teacher_published"]
    tests = " and ".join(f"{found['top1']:.2f}" + (f" ({found['how']})" if len(measured) > 1 else "")
                         for found in measured)
    text = (f"The teacher tests at {tests or 'what no finished run has measured'}"
            + (f"; published {figure_words(known)}" if known else "") + ".")
    lines, missing = [], []
    marks: dict[str, str] = {}
    for row in block["rows"]:
        said = [marks.setdefault(remark, f"[{len(marks) + 1}]") for remark in row["remarks"]]
        count = str(row["last"]["n"]) + (f", without {', '.join(row['missing'])}" if row["missing"] else "")
        figure = row["published"]
        lines.append([" ".join([row["name"], *said]), count, value(row, "last"), value(row, "best"),
                      figure_words(figure) if figure else "—", f"{figure['difference']:+.2f}" if figure else "—"])
        missing += [f"{row['name']}, trial {trial}: {state}" for trial, state in row["missing"].items()]
    return Part(arrow(block["pair"]), text,
                [["method", "trials", "last", "best", "published", "difference"], *lines], picture, missing,
                [f"{mark} {remark}." for remark, mark in marks.items()])


def significance_part(differences: list[dict]) -> Part:
    lines = [[arrow(d["pair"]), f"{d['method']} − {d['against']}", ", ".join(d["trials"]), f"{d['mean']:+.2f}",
              "—" if d["interval"] is None else f"{d['interval'][0]:+.2f} to {d['interval'][1]:+.2f}"]
             for d in differences]
    text = ("Mean difference of the last accuracy, in points, trial by trial, over the trials that both methods have. "
            f"The interval is the {LEVEL}% percentile bootstrap of that mean over trials ({RESAMPLES:,} resamples, "
            f"seed {SEED}). Few trials make it too narrow: with 3 it only says how far they lie apart.")
    return Part("Differences between methods", text,
                [["pair", "difference", "trials", "mean", f"{LEVEL}% interval"], *lines])


def sources_part(content: dict) -> Part:
    versions = content["versions"]
    commits = ", ".join(commit[:12] + "+" * commit.endswith("+") for commit in versions["commit"]) or "unknown"
    text = (f"All rows: {settings_words(content['settings']) or 'nothing in common'}. "
            f"PyTorch {', '.join(versions['torch']) or 'unknown'}; commit {commits}.")
    return Part("Common settings and sources", text, notes=sources(content))


def as_csv(content: dict) -> str:
    """A line a row of the table."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["pair", "method", "trials", "last_mean", "last_std", "best_mean", "best_std", "last_values",
                     "best_values", "teacher_top1", "published", "published_source", "published_epoch", "difference",
                     "missing", "remarks", "settings"])

    def number(value):
        return "" if value is None else f"{value:.2f}"

    def text(value):  # a spreadsheet takes a cell that begins so for a formula
        return f"'{value}" if value and value[0] in "=+-@\t\r" else value

    for block in content["pairs"]:
        for row in block["rows"]:
            figure = row["published"] or dict.fromkeys(("top1", "source", "epoch", "difference"))
            settings = content["settings"] | block["settings"] | row["settings"] if row["runs"] else {}
            writer.writerow([
                text(block["pair"]), text(row["name"]), row["last"]["n"],
                *(number(row[epoch][key]) for epoch in ("last", "best") for key in ("mean", "std")),
                *(" ".join(map(number, row[epoch]["values"])) for epoch in ("last", "best")),
                " ".join(number(found["top1"]) for found in block["teacher_top1"]), number(figure["top1"]),
                figure["source"], figure["epoch"], number(figure["difference"]),
                text("; ".join(f"{trial}: {state}" for trial, state in row["missing"].items())),
                text("; ".join(row["remarks"])), json.dumps(settings, ensure_ascii=False) if settings else ""])
    return file.getvalue()
