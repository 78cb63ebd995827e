"""Print one line a student: what it was trained with, its last and best test accuracy, its seconds.

python scripts/summary.py --save_dir ./save
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

from helper.cli import Parser
from helper.record.records import read_records
from helper.util.errors import UsageError, guarded, printable
from scripts.tables.aggregate import rows_of

HEAD = ("pair", "method", "trial", "last", "best", "seconds")


def main():
    parser = Parser(prog="summary.py", description="One line for each finished student. Nothing is written.")
    parser.add_argument("--save_dir", default="./save", metavar="DIR", help="where runs were written (default ./save)")
    folder = parser.parse_args().save_dir
    records, faults = read_records(folder)
    for fault in faults:
        print(f"note: {printable(fault)}", file=sys.stderr)
    rows = rows_of(records, folder)
    lines = [(row.pair.replace("->", "→"), row.name, record.trial, f"{record.final['last']['top1']:.2f}",
              f"{record.final['best']['top1']:.2f}", f"{record.final['seconds']:.1f}")
             for row in rows for record in row.records]
    if not lines:
        raise UsageError(f"no finished student under {folder}/student_model: train one, or give --save_dir")
    widths = [max(len(line[i]) for line in [HEAD, *lines]) for i in range(len(HEAD))]
    for line in [HEAD, tuple("-" * width for width in widths), *lines]:
        print("  ".join(f"{cell:<{width}}" if i < 3 else f"{cell:>{width}}"
                        for i, (cell, width) in enumerate(zip(line, widths, strict=True))))


if __name__ == "__main__":
    guarded(main)
