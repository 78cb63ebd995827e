"""Checks that imports run one way: no circle among files, and none upwards from one room to a higher one.

python scripts/check_imports.py
"""
import argparse
import ast
import graphlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the leaves to what people run; each room may import those before it, and itself.
ROOMS = ["helper.util", "dataset", "models", "distiller_zoo", "helper.meters", "helper.evaluation", "helper.teacher",
         "helper.record", "helper", "scripts.tables", "scripts.analysis", "scripts.timing", "scripts",
         "train_student", "train_teacher"]
# Rooms that stand beside each other, and whose files do not see the other's.
APART = [{"helper.teacher", "helper.record"}, {"scripts.tables", "scripts.analysis"},
         {"train_student", "train_teacher"}, {"scripts", "train_student"}, {"scripts", "train_teacher"}]
# What the packages of scripts share.
SHARED = {"scripts.pages": "scripts.tables"}


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    names = modules()
    imports = {name: imported(path, names) for name, path in names.items()}
    faults = [*upwards(imports), *circles(imports)]
    print("\n".join(faults) or f"{len(imports)} modules, no import upwards, no circle")
    sys.exit(1 if faults else 0)


def modules() -> dict[str, Path]:
    """Every module of the repository but the tests, by its dotted name."""
    paths = [*ROOT.glob("*.py"), *(path for room in ("dataset", "models", "distiller_zoo", "helper", "scripts")
                                   for path in (ROOT / room).rglob("*.py"))]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


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
            if ROOMS.index(there) > ROOMS.index(here) or {here, there} in APART:
                faults.append(f"{name} imports {other}, from {here} to {there}")
    return faults


def circles(imports: dict[str, set[str]]) -> list[str]:
    """A line for a circle of modules that import each other, if there is one."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return [f"circle: {', '.join(sorted(set(error.args[1])))}"]
    return []


if __name__ == "__main__":
    main()
