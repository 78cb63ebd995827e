"""The report of a table: Markdown, LaTeX (booktabs), CSV, JSON and one HTML page, from the folders of its runs."""
import base64
import csv
import html
import io
import json
import os
from dataclasses import dataclass, field

from helper.record import published
from helper.record.records import read_records
from helper.util.errors import UsageError
from helper.util.files import write_bytes, write_json
from scripts.tables import plots
from scripts.tables.aggregate import LEVEL, RESAMPLES, SEED, Row, rows_of, table
from scripts.tables.hparams import write_hparams

TO_READ = {"gamma": "r", "alpha": "a", "beta": "b", "lr_decay_epochs": "decay after",
           "lr_decay_rate": "decay to", "learning_rate": "rate", "batch_size": "batch", "warm_up": "warm-up",
           "weight_decay": "weight decay", "teacher_checkpoint": "teacher",
           "teacher_source": "teacher's outputs", "init_epochs": "first stage",
           "ikd_means": "class means of", "cache_dtype": "cached in"}
FILES = ("report.md", "report.tex", "report.csv", "report.json", "report.html")


@dataclass
class Part:
    """A part of the report: a heading, then any of a paragraph, a table (its first row the head), a list, commands
    and a picture (SVG)."""

    title: str
    text: str = ""
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    picture: str = ""


def write_report(save_dir: str, out: str, asked: dict | None, with_significance: bool, hparams: bool) -> list[str]:
    """Write FILES into the folder `out`; a line for each thing that could not be read or drawn.

    hparams: whether TensorBoard's folders get what its HPARAMS page shows
    asked: what Table.record gives, so that runs that are not there are shown as missing; None: all finished runs
    Raises UsageError where there is nothing to report.
    """
    records, faults = read_records(save_dir)
    rows = rows_of(records, asked and asked["runs"])
    if not any(row.records for row in rows):
        raise UsageError(f"no finished student {'of this table ' if asked else ''}under {save_dir}/student_model: "
                         "train one, or give --save_dir")
    content = table(asked["title"] if asked else "All finished runs", rows, with_significance)
    parts = parts_of(content, rows)
    os.makedirs(out, exist_ok=True)
    for name, text in zip(FILES, (markdown(content, parts), latex(content, parts), as_csv(content), None,
                                  page(content, parts)), strict=True):
        if text is None:
            write_json(os.path.join(out, name), content)
        else:
            write_bytes(os.path.join(out, name), text.encode())
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
    parts.append(settings_part(content))
    parts.append(Part("Command lines", "One line a run.", commands=content["commands"]))
    return parts


def overview(content):
    """Methods against pairs, the last accuracy."""
    pairs = [block["pair"] for block in content["pairs"]]
    names = list(dict.fromkeys(row["method"] for block in content["pairs"] for row in block["rows"]))
    teachers = [", ".join(f"{top1:.2f}" for top1 in block["teacher_top1"]) or "—" for block in content["pairs"]]
    lines = []
    for name in names:
        cells = []
        for block in content["pairs"]:
            found = [row for row in block["rows"] if row["method"] == name]
            # Rows of several settings have no one cell: they stand in the pair's own table.
            cells.append("—" if not found else "several" if len(found) > 1 else
                         f"{value(found[0]['last'])} ({found[0]['last']['n']})")
        lines.append([name, *cells])
    return Part("Last accuracy", "Test accuracy in percent at the last epoch: mean ± sample standard deviation over "
                "trials (their number).", [["method", *map(arrow, pairs)], ["teacher", *teachers], *lines])


def pair_part(block, picture):
    teacher = ", ".join(f"{top1:.2f}" for top1 in block["teacher_top1"]) or "not measured"
    known = block["teacher_published"]
    text = f"The teacher tests at {teacher}" + (f"; published {published_words(known)}" if known else "") + "."
    if block["settings"]:
        text += f" All its rows: {settings_words(block['settings'])}."
    head = ["method", "trials", "last", "best", "published", "difference", "settings"]
    lines, notes, marks = [], [], {}
    for row in block["rows"]:
        said = []
        for remark in row["remarks"]:
            said.append(marks.setdefault(remark, f"[{len(marks) + 1}]"))
        name = row["name"] + "".join(f" {mark}" for mark in said)
        count = str(row["last"]["n"]) + (f", missing {', '.join(row['missing'])}" if row["missing"] else "")
        figure = row["published"]
        lines.append([name, count, value(row["last"]), value(row["best"]),
                      published_words(figure) if figure else "—", f"{figure['difference']:+.2f}" if figure else "—",
                      settings_words(row["settings"]) or "—"])
        notes += [f"{row['name']}, trial {trial} is missing: {state}." for trial, state in row["missing"].items()]
    notes = [f"{mark} {remark}." for remark, mark in marks.items()] + notes
    return Part(arrow(block["pair"]), text, [head, *lines], notes, picture=picture)


def significance_part(differences):
    lines = [[arrow(d["pair"]), f"{d['method']} − {d['against']}", ", ".join(d["trials"]), f"{d['mean']:+.2f}",
              "—" if d["interval"] is None else f"{d['interval'][0]:+.2f} to {d['interval'][1]:+.2f}"]
             for d in differences]
    text = ("Mean difference of the last accuracy, in points, trial by trial, over the trials that both methods have. "
            f"The interval is the {LEVEL}% percentile bootstrap of that mean over trials ({RESAMPLES:,} resamples, "
            f"seed {SEED}). Few trials make it too narrow: with 3 it only says how far they lie apart.")
    return Part("Differences between methods", text,
                [["pair", "difference", "trials", "mean", f"{LEVEL}% interval"], *lines])


def settings_part(content):
    notes = [f"{key}: {source['what']}; epoch: {source['figure']}." for key, source in content["sources"].items()]
    if content["sources"]:
        notes.append("The difference is ours minus the published figure: last with last, best with best; the last "
                     "where a source does not state which.")
        notes += published.REMARKS
    versions = content["versions"]
    text = (f"All rows: {settings_words(content['settings'])}. PyTorch {', '.join(versions['torch'])}; commit "
            f"{', '.join(commit[:12] + '+' * commit.endswith('+') for commit in versions['commit']) or 'unknown'}.")
    return Part("Settings and sources", text, notes=notes)


def value(spread) -> str:
    """'70.66 ± 0.24', '70.66' for one trial, 'missing' for none."""
    if spread["n"] == 0:
        return "missing"
    return f"{spread['mean']:.2f}" + (f" ± {spread['std']:.2f}" if spread["std"] is not None else "")


def published_words(figure) -> str:
    return f"{figure['top1']:.2f} ({figure['source']}, {figure['epoch']})"


def settings_words(settings) -> str:
    """'epochs 20, batch 64, decay after 13 15 18'; without what stands in the table."""
    return ", ".join(f"{TO_READ.get(key, key)} {_shown(value)}" for key, value in settings.items()
                     if key not in ("distill", "teacher_top1") and (key, value) != ("avg", 0) and value is not None)


def _shown(value):
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def arrow(text) -> str:
    return text.replace("->", " → ")


def markdown(content: dict, parts: list[Part]) -> str:
    lines = [f"# {content['title']}", "", *(f"**{caution}**\n" for caution in content["cautions"])]
    for part in parts:
        lines += [f"## {part.title}", "", *([part.text, ""] if part.text else [])]
        for i, row in enumerate(part.rows):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
            lines += ["|" + " --- |" * len(row)] if i == 0 else []
        lines += [""] * bool(part.rows) + [f"- {note}" for note in part.notes] + [""] * bool(part.notes)
        lines += [*(f"    {command}" for command in part.commands), ""] if part.commands else []
    return "\n".join(lines).rstrip() + "\n"


def latex(content: dict, parts: list[Part]) -> str:
    r"""To be \input into a document that uses booktabs; command lines are comments."""
    lines = ["% needs \\usepackage{booktabs}", f"% {content['title']}"]
    for part in parts:
        if part.rows:
            head, *rows = [[_tex(cell) for cell in row] for row in part.rows]
            lines += ["", "\\begin{table}", "\\centering\\small", f"\\caption{{{_tex(part.title)}. {_tex(part.text)}}}",
                      f"\\begin{{tabular}}{{{'l' * len(head)}}}", "\\toprule", " & ".join(head) + " \\\\", "\\midrule",
                      *(" & ".join(row) + " \\\\" for row in rows), "\\bottomrule", "\\end{tabular}",
                      *(f"\\par\\footnotesize {_tex(note)}" for note in part.notes), "\\end{table}"]
        else:
            lines += ["", *(f"\\par\\footnotesize {_tex(text)}" for text in [part.text, *part.notes] if text)]
            lines += [f"% {command}" for command in part.commands]
    lines += ["", *(f"\\par\\footnotesize {_tex(caution)}" for caution in content["cautions"])]
    return "\n".join(lines) + "\n"


def _tex(text):
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "→": r"$\rightarrow$", "−": "$-$", "—": "---", "_": r"\_",
               "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
               "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "·": r"$\cdot$", "×": r"$\times$"}
    return "".join(special.get(char, char) for char in text)


def as_csv(content: dict) -> str:
    """A line a row of the table."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["pair", "method", "trials", "last_mean", "last_std", "best_mean", "best_std", "last_values",
                     "best_values", "teacher_top1", "published", "published_source", "published_epoch", "difference",
                     "missing", "remarks", "settings"])
    for block in content["pairs"]:
        for row in block["rows"]:
            figure = row["published"] or dict.fromkeys(("top1", "source", "epoch", "difference"))
            settings = content["settings"] | block["settings"] | row["settings"] if row["runs"] else {}
            means = [row[epoch][key] for epoch in ("last", "best") for key in ("mean", "std")]
            values = [" ".join(map(str, row[epoch]["values"])) for epoch in ("last", "best")]
            writer.writerow([
                block["pair"], row["method"], row["last"]["n"], *means, *values,
                " ".join(map(str, block["teacher_top1"])), figure["top1"], figure["source"], figure["epoch"],
                figure["difference"], " ".join(row["missing"]), "; ".join(row["remarks"]),
                json.dumps(settings, ensure_ascii=False) if settings else ""])
    return file.getvalue()


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem; margin: 2rem auto;
       padding: 0 1.5rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
.caution { border-left: 4px solid #c77700; background: #fff6e5; padding: .5rem .8rem; margin: .5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; margin: .6rem 0; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
thead th { border-top: 2px solid #1a1a1a; border-bottom: 1px solid #1a1a1a; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 2px solid #1a1a1a; }
td.n { white-space: nowrap; } td.missing { color: #b00020; }
ul { padding-left: 1.2rem; margin: .4rem 0; font-size: .85rem; color: #444; }
img { width: 100%; max-width: 56rem; height: auto; }
pre { font-size: .72rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6;
      padding: .7rem; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; padding: 0; } h2 { break-after: avoid; }
  tr, img { break-inside: avoid; } .wide { overflow: visible; } pre { background: none; padding: 0; } }
"""


def page(content: dict, parts: list[Part]) -> str:
    """One HTML file that asks for no other."""
    body = [f"<h1>{_html(content['title'])}</h1>",
            *(f'<p class="caution">{_html(caution)}</p>' for caution in content["cautions"])]
    for part in parts:
        body.append(f"<section>\n<h2>{_html(part.title)}</h2>")
        body += [f"<p>{_html(part.text)}</p>"] if part.text else []
        if part.rows:
            head, *rows = part.rows
            body.append('<div class="wide"><table><thead><tr>' + "".join(f"<th>{_html(cell)}</th>" for cell in head)
                        + "</tr></thead><tbody>")
            body += ["<tr>" + "".join(_cell(cell, i) for i, cell in enumerate(row)) + "</tr>" for row in rows]
            body.append("</tbody></table></div>")
        if part.picture:
            data = base64.b64encode(part.picture.encode()).decode()
            body.append(f'<img alt="Test accuracy by epoch, {_html(part.title)}: mean and standard deviation over '
                        f'trials" src="data:image/svg+xml;base64,{data}">')
        body += ["<ul>", *(f"<li>{_html(note)}</li>" for note in part.notes), "</ul>"] if part.notes else []
        body += ["<pre>" + "\n".join(map(_html, part.commands)) + "</pre>"] if part.commands else []
        body.append("</section>")
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" '
            f'content="width=device-width, initial-scale=1">\n<title>{_html(content["title"])}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n")


def _cell(cell, i):
    kind = "missing" if cell == "missing" or ", missing " in cell else "n" if i < 6 and len(cell) < 30 else ""
    return f'<td class="{kind}">{_html(cell)}</td>' if kind else f"<td>{_html(cell)}</td>"


def _html(text):
    return html.escape(text)
