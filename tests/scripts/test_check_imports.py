"""The check of directions and circles finds what it is there to find."""
import pytest

from scripts.check_imports import circles, imported, upwards


@pytest.mark.parametrize("here, there, fault", [
    ("helper.util.files", "helper.loop", True), ("dataset.views", "distiller_zoo.kd", True),
    ("helper.teacher.plan", "helper.record.run", True), ("helper.loop", "train_student", True),
    ("scripts.tables.plan", "scripts.analysis.metrics", True), ("helper.step", "helper.teacher.loader", False),
    ("scripts.evaluate", "helper.evaluation", False), ("distiller_zoo.kd", "helper.util.arguments", False)])
def test_an_import_upwards_or_aside_is_a_fault(here, there, fault):
    assert bool(upwards({here: {there}, there: set()})) == fault


def test_a_circle_is_named():
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert circles(imports) == ["circle: a, b, c"]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_imports_are_those_that_run_as_a_file_is_loaded(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("from b import c, name\nimport os, d\nif TYPE_CHECKING:\n    import e\n"
                    "class F:\n    import f\ndef g():\n    import h\n")
    assert imported(file, dict.fromkeys(("b", "b.c", "d", "e", "f", "h"))) == {"b", "b.c", "d", "f"}
