"""Checks that imports run one way: no circle among files, and none upwards from one room to a higher one.

python scripts/check_imports.py
"""
import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the leaves to what people run; each room may import those before it, and itself.
ROOMS = ["helper.util", "dataset", "models", "distiller_zoo", "helper.meters", "helper.evaluation", "helper.teacher",
         "helper.record", "helper", "scripts.tables", "scripts.analysis", "scripts", "train_student", "train_teacher"]
# Rooms that stand beside each other, and whose files do not see the other's.
APART = [("helper.teacher", "helper.record"), ("scripts.tables", "scripts.analysis"),
         ("train_student", "train_teacher"), ("scripts", "train_student"), ("scripts", "train_teacher")]
# What the packages of scripts share.
SHARED = {"scripts.pages": "scripts.tables", "scripts.children": "scripts.tables"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    imports = {name: imported(path, names) for names in [modules()] for name, path in names.items()}
    faults = [*upwards(imports), *circles(imports)]
    print("\n".join(faults) or f"{len(imports)} modules, no import upwards, no circle")
    sys.exit(1 if faults else 0)


def modules() -> dict[str, Path]:
    """Every module of the repository but the tests, by its dotted name."""
    found = {}
    for path in [*ROOT.glob("*.py"), *(p for room in ("dataset", "models", "distiller_zoo", "helper", "scripts")
                                       for p in (ROOT / room).rglob("*.py"))]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, names: dict[str, Path]) -> set[str]:
    """The modules of the repository that a file imports as it is loaded, those inside functions left out."""
    found, inside = set(), set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside |= {child for child in ast.walk(node) if child is not node}
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            inside |= set(ast.walk(node))
    for node in set(ast.walk(tree)) - inside:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            own = {f"{node.module}.{alias.name}" for alias in node.names} & names.keys()
            # `from package import name` needs the package's own file only where the name is not one of its files.
            found |= own if len(own) == len(node.names) else own | {node.module}
    return found & names.keys()


def room_of(name: str) -> str | None:
    """The innermost room that holds a module."""
    name = SHARED.get(name, name)
    inside = [room for room in ROOMS if name == room or name.startswith(room + ".")]
    return max(inside, key=len, default=None)


def upwards(imports: dict[str, set[str]]) -> list[str]:
    """A line for each import of a higher room, or of one apart."""
    faults = []
    for name, others in sorted(imports.items()):
        for other in sorted(others):
            here, there = room_of(name), room_of(other)
            if here is None or there is None or here == there:
                continue
            if ROOMS.index(there) > ROOMS.index(here) or (here, there) in APART or (there, here) in APART:
                faults.append(f"{name} imports {other}, from {here} to {there}")
    return faults


def circles(imports: dict[str, set[str]]) -> list[str]:
    """A line for each set of modules that import each other."""
    left = {name: others - {name} for name, others in imports.items()}
    # What imports nothing that is left, and what nothing that is left imports, is in no circle.
    while True:
        ends = {name for name, others in left.items() if not others & left.keys()}
        ends |= left.keys() - {other for others in left.values() for other in others}
        if not ends:
            return [f"circle: {', '.join(sorted(left))}"] if left else []
        left = {name: others for name, others in left.items() if name not in ends}


if __name__ == "__main__":
    main()
