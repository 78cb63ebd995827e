"""Print one line a student: what it was trained with, its last and best test accuracy, its seconds.

python scripts/summary.py --save_dir ./save
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from helper.util import start  # noqa: F401 (before PyTorch)

# isort: split
from helper.record.records import read_records


def main():
    parser = argparse.ArgumentParser(description="One line for each finished student.", allow_abbrev=False)
    parser.add_argument("--save_dir", default="./save", metavar="DIR", help="where runs were written (default ./save)")
    folder = Path(parser.parse_args().save_dir)
    records, faults = read_records(folder)
    for fault in faults:
        print(f"note: {fault}", file=sys.stderr)
    done = sorted((r for r in records if r.result), key=lambda r: (r.folder / "result.json").stat().st_mtime)
    rows = [(r.pair.replace("->", "→"), r.method, r.trial, f"{r.result['last']['top1']:.2f}",
             f"{r.result['best']['top1']:.2f}", f"{r.result['seconds']:.1f}") for r in done]
    if not rows:
        parser.exit(2, f"error: no finished student under {folder}/student_model: train one, or give --save_dir\n")
    head = ("pair", "method", "trial", "last", "best", "seconds")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, tuple("-" * width for width in widths), *rows]:
        left, right = row[:3], row[3:]
        print("  ".join([*(f"{x:<{w}}" for x, w in zip(left, widths, strict=False)),
                         *(f"{x:>{w}}" for x, w in zip(right, widths[3:], strict=True))]).rstrip())


if __name__ == "__main__":
    main()
