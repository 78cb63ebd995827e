"""Write the tables of docs/methods.md and docs/models.md that the code holds.

python scripts/docs_tables.py
python scripts/docs_tables.py --check    # write nothing; exit 1 where a page is not up to date
"""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

from distiller_zoo import METHODS
from helper.cli import Parser, defaults_of
from helper.record.published import SCHEDULES, SOURCES, WEIGHTS
from helper.util.errors import RunError, guarded
from helper.util.files import write_bytes
from scripts.pages import markdown_table
from scripts.tables.words import FLAGS

DOCS = Path(__file__).parent.parent / "docs"


def main():
    parser = Parser(prog="docs_tables.py", description="Write the tables of docs/ that the code holds.")
    parser.add_argument("--check", "--dry_run", action="store_true",
                        help="write nothing; exit 1 and name the pages that are not up to date")
    check, stale = parser.parse_args().check, []
    for name, table in TABLES.items():
        path = DOCS / name
        text = path.read_text(encoding="utf-8")
        if (new := with_table(text, table())) != text:
            stale.append(str(path.relative_to(DOCS.parent)))
            if not check:
                write_bytes(str(path), new.encode())
    if stale and check:
        raise RunError(f"{', '.join(stale)} not up to date: run python scripts/docs_tables.py")
    print(f"written: {', '.join(stale)}" if stale else "all tables are up to date")


def with_table(text: str, table: str, script: str = "scripts/docs_tables.py") -> str:
    """A page with what stands between the script's comment and the next end replaced."""
    return re.sub(rf"(<!-- made by {re.escape(script)} -->\n).*?(<!-- end -->\n)",
                  lambda found: found[1] + table + found[2], text, count=1, flags=re.S)


def methods() -> str:
    """A row for each method, in Markdown."""
    rows = []
    for method in METHODS.values():
        flags = ", ".join(f"`{flag.name} {flag.default}`" for flag in method.flags)
        # abound and fsp read nothing after their first stage, which reads feature maps.
        reads = ", ".join(sorted(method.reads)) or "feature maps, in its first stage"
        rows.append((method.name, method.paper, method.formula.replace("|", "\\|"), reads,
                     defaults_of(method) + (f"; {flags}" if flags else ""),
                     "yes" if method.in_published_code else "no: later"))
    return markdown_table(("`--distill`", "paper", "loss", "reads of the teacher", "defaults",
                           "in the published IKD code"), rows) + "\n"


def recipes() -> str:
    """The schedules, the methods' weights and their sources, in Markdown."""
    schedules = [(recipe, _flags(settings), settings["source"]) for recipe, settings in SCHEDULES.items()]
    weights = [(recipe, row.get("distill", name), pair.replace("->", " → "), _flags(row["set"] | values), row["source"])
               for recipe, known in WEIGHTS.items() for name, row in known.items()
               for pair, values in row.get("pairs", {"any": {}}).items()]
    sources = dict.fromkeys([row["source"] for row in SCHEDULES.values()]
                            + [row["source"] for known in WEIGHTS.values() for row in known.values()])
    return "\n".join([
        markdown_table(("`--recipe`", "sets", "source"), schedules), "",
        markdown_table(("`--recipe`", "`--distill`", "pair", "sets", "source"), weights), "",
        *(f"- {key}: {SOURCES[key]['what']}." for key in sources)]) + "\n"


def _flags(settings):
    return ", ".join(f"`{FLAGS.get(option, '--' + option)} {_shown(value)}`" for option, value in settings.items()
                     if option != "source")


def _shown(value):
    return ",".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if value != str(value) else value


TABLES = {"methods.md": methods, "models.md": recipes}


if __name__ == "__main__":
    guarded(main)
