"""Write the tables of recipes in docs/models.md from the code.

python scripts/recipes_table.py
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from helper.util import start  # noqa: F401 (before PyTorch)

# isort: split
from helper.record.recipes import SCHEDULES, SOURCES, WEIGHTS

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- made by scripts/recipes_table.py -->\n", "<!-- end -->\n"
FLAGS = {"gamma": "-r", "alpha": "-a", "beta": "-b"}


def tables() -> str:
    """The schedules, the methods' weights and the sources, in Markdown."""
    rows = ["| `--recipe` | sets | source |", "| --- | --- | --- |"]
    for recipe, settings in SCHEDULES.items():
        for source in dict.fromkeys(setting.source for setting in settings):
            sets = ", ".join(f"`--{s.option} {_shown(s.value)}`" for s in settings if s.source == source)
            rows.append(f"| {recipe} | {sets} | {source} |")
    rows += ["", "| `--recipe` | `--distill` | pair | sets | source |", "| --- | --- | --- | --- | --- |"]
    for row in WEIGHTS:
        pair = " → ".join(row.pair) if row.pair else "any"
        sets = ", ".join(f"`{FLAGS.get(option, '--' + option)} {value:g}`" for option, value in row.values.items())
        rows.append(f"| {row.recipe} | {row.method} | {pair} | {sets} | {row.source} |")
    return "\n".join([*rows, "", *(f"- {key}: {source}." for key, source in SOURCES.items())]) + "\n"


def _shown(value):
    return ",".join(map(str, value)) if isinstance(value, list) else f"{value:g}"


def page(text: str) -> str:
    """The page with the tables as the code has them."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
