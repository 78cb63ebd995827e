"""Write the table of docs/methods.md from the code.

python scripts/methods_table.py
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from helper.util import start  # noqa: F401 (before PyTorch)

# isort: split
from distiller_zoo import METHODS
from helper.cli import defaults_of

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
BEGIN, END = "<!-- made by scripts/methods_table.py -->\n", "<!-- end -->\n"


def table() -> str:
    """A row for each method, in Markdown."""
    rows = ["| `--distill` | paper | loss | reads of the teacher | defaults | in the published IKD code |",
            "| --- | --- | --- | --- | --- | --- |"]
    for method in METHODS.values():
        flags = ", ".join(f"`{flag.name} {flag.default}`" for flag in method.flags)
        defaults = f"{defaults_of(method)}" + (f"; {flags}" if flags else "")
        # abound and fsp read nothing after their first stage, which reads feature maps.
        reads = ", ".join(sorted(method.reads)) or "feature maps, in its first stage"
        formula = method.formula.replace("|", "\\|")
        rows.append(f"| {method.name} | {method.paper} | {formula} | {reads} | {defaults} | "
                    f"{'yes' if method.in_published_code else 'no: later'} |")
    return "\n".join(rows) + "\n"


def page(text: str) -> str:
    """The page with the table as the code has it."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
