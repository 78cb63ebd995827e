"""A table in LaTeX, as papers print it: methods x pairs, with booktabs (scripts/templates/report.tex)."""
from helper.util.errors import printable
from scripts.pages import render
from scripts.tables.words import arrow, settings_rows, settings_words, sources, teacher_value, value

SPECIAL = {"\\": r"\textbackslash{}", "±": r"$\pm$", "→": r"$\rightarrow$", "−": "$-$", "—": "---",
           "_": r"\_\allowbreak{}", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
           "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
           "·": r"$\cdot$", "×": r"$\times$",
           "/": r"/\allowbreak{}", "'": "'", '"': "''"}


def latex(content: dict) -> str:
    r"""To be \input into a document that uses booktabs and graphicx; content: what report.json holds."""
    pairs = content["pairs"]
    marked: dict[str, list[str]] = {}
    for block in pairs:
        for row in block["rows"]:
            for remark in row["remarks"]:
                marked.setdefault(f"{row['name']}: {remark}", []).append(arrow(block["pair"]))
    notes = [*content["cautions"], *sources(content),
             *(f"{remark} ({', '.join(found)})." for remark, found in marked.items()),
             *(f"{d['method']} − {d['against']} on {arrow(d['pair'])}: {d['mean']:+.2f}"
               + (f" ({d['interval'][0]:+.2f} to {d['interval'][1]:+.2f})" if d["interval"] else "")
               for d in content["significance"] or [])]
    by_name = [{row["name"]: row for row in block["rows"]} for block in pairs]
    names = dict.fromkeys(name for rows in by_name for name in rows)
    counts = sorted({row["last"]["n"] for rows in by_name for row in rows.values()} - {0}) or [0]
    means = [[row["last"]["mean"] for row in rows.values() if row["last"]["n"]] for rows in by_name]
    return render(
        "report.tex", **content | {"commands": map(printable, content["commands"])}, notes=notes,
        teachers=[{"published": block["teacher_published"]} for block in pairs],
        rows=[(name, [rows.get(name) for rows in by_name]) for name in names],
        best=[max(found, default=None) for found in means], counts=list(dict.fromkeys((counts[0], counts[-1]))),
        common=settings_words(content["settings"]), settings_rows=settings_rows(content), tex=tex, value=value,
        teacher_value=teacher_value)


def tex(text: str) -> str:
    """A text in one line, with LaTeX's special characters escaped; letters that its fonts lack become their numbers."""
    return "".join(SPECIAL.get(char, char if ord(char) < 0x180 else f"U+{ord(char):04X}") for char in printable(text))
