"""A table in LaTeX, as papers print it: methods x pairs, with booktabs."""
from helper.util.errors import printable
from scripts.tables.words import arrow, settings_rows, settings_words, sources, teacher_value, value

SPECIAL = {"\\": r"\textbackslash{}", "±": r"$\pm$", "→": r"$\rightarrow$", "−": "$-$", "—": "---",
           "_": r"\_\allowbreak{}", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
           "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
           "·": r"$\cdot$", "×": r"$\times$",
           "/": r"/\allowbreak{}", "'": "'", '"': "''"}
# A column fits three pairs; what is too wide all the same, such as long names, is made smaller.
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def latex(content: dict) -> str:
    r"""To be \input into a document that uses booktabs and graphicx; command lines are comments.

    content: what report.json holds
    """
    pairs = content["pairs"]
    wide = "*" if len(pairs) > 3 else ""
    lines = [r"% needs \usepackage{booktabs,graphicx}", f"% {printable(content['title'])}", "",
             rf"\begin{{table{wide}}}", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
             rf"\caption{{{tex(_caption(content))}}}", FIT,
             rf"\begin{{tabular}}{{@{{}}l*{{{len(pairs)}}}{{c}}@{{}}}}", r"\toprule", *_head(pairs), r"\midrule",
             *_body(pairs), r"\bottomrule", r"\end{tabular}}", rf"\end{{table{wide}}}", "",
             "% for the appendix", r"\begin{table*}", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
             rf"\caption{{Settings. All rows: {tex(settings_words(content['settings']))}.}}",
             r"\begin{tabular}{@{}p{0.2\textwidth}p{0.2\textwidth}p{0.54\textwidth}@{}}", r"\toprule",
             r"method & pairs & settings \tabularnewline", r"\midrule",
             *(" & ".join(rf"\raggedright {tex(cell)}" for cell in row) + r" \tabularnewline"
               for row in settings_rows(content)), r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""]
    marked: dict[str, list[str]] = {}
    for block in pairs:
        for row in block["rows"]:
            for remark in row["remarks"]:
                marked.setdefault(f"{row['name']}: {remark}", []).append(arrow(block["pair"]))
    notes = [f"{remark} ({', '.join(found)})." for remark, found in marked.items()]
    notes += [f"{d['method']} − {d['against']} on {arrow(d['pair'])}: {d['mean']:+.2f}"
              + (f" ({d['interval'][0]:+.2f} to {d['interval'][1]:+.2f})" if d["interval"] else "")
              for d in content["significance"] or []]
    lines += [rf"{{\footnotesize\raggedright {tex(note)}\par}}"
              for note in [*content["cautions"], *sources(content), *notes]]
    return "\n".join([*lines, "", *(f"% {printable(command)}" for command in content["commands"])]) + "\n"


def _caption(content):
    datasets = {content["settings"].get("dataset", "")} - {""}
    counts = sorted({row["last"]["n"] for block in content["pairs"] for row in block["rows"]} - {0})
    trials = " to ".join(str(n) for n in dict.fromkeys([*counts[:1], *counts[-1:]])) or "0"
    on = "".join(f" on {name}" for name in datasets)
    text = (f"Test accuracy (%){on} at the last epoch, mean ± standard deviation over {trials} "
            f"trial{'s' * (trials != '1')}; best in bold")
    return text + ("; small, what is published, with its source." if content["sources"] else ".")


def _head(pairs):
    teachers, students = zip(*(block["pair"].split("->") for block in pairs), strict=True)
    yield _line("Teacher", map(tex, teachers))
    yield _line("", (tex(teacher_value(block)) for block in pairs))
    known = [block["teacher_published"] for block in pairs]
    if any(known):
        yield _small(known)
    yield _line("Student", map(tex, students))


def _body(pairs):
    rows = [{row["name"]: row for row in block["rows"]} for block in pairs]
    best = [max((row["last"]["mean"] for row in found.values() if row["last"]["n"]), default=None) for found in rows]
    for name in dict.fromkeys(name for found in rows for name in found):
        cells = [_cell(found.get(name), top) for found, top in zip(rows, best, strict=True)]
        yield _line(tex(name), cells)
        known = [found[name]["published"] if name in found else None for found in rows]
        if any(known):
            yield _small(known)


def _cell(row, best):
    if row is None:
        return "---"
    last = row["last"]
    if not last["n"]:
        return rf"\textit{{{value(row, 'last')}}}"
    mean = f"{last['mean']:.2f}"
    mean = rf"\textbf{{{mean}}}" if last["mean"] == best else mean
    return mean + (rf"{{\tiny$\pm${last['std']:.2f}}}" if last["std"] is not None else "")


def _small(known):
    return _line(r"{\scriptsize\quad published}",
                 [rf"{{\scriptsize {figure['top1']:.2f} {figure['source']}}}" if figure else "" for figure in known])


def _line(first, cells):
    return " & ".join([first, *cells]) + r" \\"


def tex(text: str) -> str:
    """A text in one line, with LaTeX's special characters escaped; letters that its fonts lack become their numbers."""
    return "".join(SPECIAL.get(char, char if ord(char) < 0x180 else f"U+{ord(char):04X}") for char in printable(text))
