"""Checks that imports run one way: no circle among files, and none upwards from one room to a higher one.

python scripts/check_imports.py
"""
import argparse
import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the leaves to what people run. A room may import those of the rows before it, and itself, but none beside it.
ROWS = [["helper.util"], ["dataset"], ["models"], ["distiller_zoo"], ["helper.meters"], ["helper.evaluation"],
        ["helper.teacher", "helper.record"], ["helper"], ["scripts.pages"],
        ["scripts.tables", "scripts.analysis", "scripts.timing"], ["scripts", "train_student", "train_teacher"]]
RANKS = {room: rank for rank, row in enumerate(ROWS) for room in row}


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    names = modules()
    imports = {name: imported(path, names) for name, path in names.items()}
    faults = [*upwards(imports), *circles(imports)]
    print("\n".join(faults) or f"{len(imports)} modules, no import upwards, no circle")
    sys.exit(1 if faults else 0)


def modules() -> dict[str, Path]:
    """Every module of the rooms, by its dotted name."""
    tops = {room.partition(".")[0] for room in RANKS}
    paths = [path for top in tops for path in (*ROOT.glob(f"{top}.py"), *(ROOT / top).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path, names: dict[str, Path]) -> set[str]:
    """The modules of the repository that a file imports as it is loaded."""
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.module:
            # `from package import name` needs the package's own file only where the name is not one of its files.
            wanted = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in names else node.module for name in wanted}
    return found & names.keys()


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports below a node, without those inside functions and those for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(child)


def room_of(name: str) -> str:
    """The innermost room that holds a module."""
    return max((room for room in RANKS if f"{name}.".startswith(f"{room}.")), key=len)


def upwards(imports: dict[str, set[str]]) -> list[str]:
    """A line for each import of a higher room, or of one beside."""
    faults = []
    for name, other in sorted((name, other) for name, others in imports.items() for other in others):
        here, there = room_of(name), room_of(other)
        if here != there and RANKS[there] >= RANKS[here]:
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
