"""Print one line a student: what it was trained with, its last and best test accuracy, its seconds.

python scripts/summary.py --save_dir ./save
"""
import argparse
import json
from pathlib import Path


def label(method: str, terms: list[str]) -> str:
    """A short name of a student's objective, such as 'dkd+IKD'; 'ce' where the teacher has no say.

    method: `--distill`; terms: the names of the loss's terms
    """
    own = [] if method == "kd" and "kd" not in terms else [method]
    added = [name for key, name in (("kd", "KD"), ("ikd", "IKD")) if key in terms and key != method]
    return "+".join(own + added) or "ce"


def main():
    parser = argparse.ArgumentParser(description="One line for each finished student.", allow_abbrev=False)
    parser.add_argument("--save_dir", default="./save", metavar="DIR", help="where runs were written (default ./save)")
    folder = Path(parser.parse_args().save_dir)
    rows = []
    for path in sorted(folder.glob("student_model/*/result.json"), key=lambda path: path.stat().st_mtime):
        settings = json.loads((path.parent / "args.json").read_text())["settings"]
        result = json.loads(path.read_text())
        rows.append((f"{result['teacher']}→{settings['model_s']}", label(settings["distill"], result["terms"]),
                     settings["trial"], f"{result['last']['top1']:.2f}", f"{result['best']['top1']:.2f}",
                     f"{result['seconds']:.1f}"))
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
