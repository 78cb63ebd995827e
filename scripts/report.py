"""Write the report of the runs under a folder: Markdown, LaTeX, CSV, JSON and one HTML page.

python scripts/report.py --save_dir ./save                          # all finished students
python scripts/report.py --table save/report/table.json             # a table of reproduce.py, missing runs shown
"""
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

from helper.cli import Parser
from helper.util.errors import UsageError, guarded, printable
from scripts.tables.report import FILES, write_report

RUN = ("name", "folder", "pair", "method", "variant", "trial")


def main():
    parser = Parser(prog="report.py", description="Write the report of the runs under a folder.")
    parser.add_argument("--save_dir", default="./save", metavar="DIR", help="where runs were written")
    parser.add_argument("--table", metavar="FILE", help="the table.json that reproduce.py has left: its runs alone, "
                                                        "missing ones shown as missing")
    parser.add_argument("--out", metavar="DIR", help="where the report goes (default SAVE_DIR/report, or beside FILE)")
    parser.add_argument("--significance", action="store_true",
                        help="paired differences between methods over common trials, with a bootstrap interval")
    parser.add_argument("--hparams", action="store_true",
                        help="write the runs' settings into their TensorBoard folders, for its HPARAMS page")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    o = parser.parse_args()
    asked = read_table(o.table) if o.table else None
    out = o.out or (str(Path(o.table).parent) if o.table else os.path.join(o.save_dir, "report"))
    if not o.dry_run:
        for fault in write_report(o.save_dir, out, asked, o.significance, o.hparams):
            print(f"note: {printable(fault)}", file=sys.stderr)
    print(f"{', '.join(FILES)} {'would be written to' if o.dry_run else 'are in'} {out}")


def read_table(path):
    """What reproduce.py wrote. Raises UsageError."""
    try:
        asked = json.loads(Path(path).read_text(encoding="utf-8"))
        return {"title": str(asked["title"]), "runs": [{key: str(run[key]) for key in RUN} for run in asked["runs"]]}
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): name the table.json of reproduce.py") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no table of reproduce.py: run reproduce.py again, which writes it") from None


if __name__ == "__main__":
    guarded(main)
