"""Every script says what it does and would do, and does nothing else meanwhile."""
import os

import pytest

from tests.support import scripts

SCRIPTS = sorted(str(path.relative_to(scripts.ROOT)) for pattern in ("*.py", "experiments/*.py")
                 for path in (scripts.ROOT / "scripts").glob(pattern) if path.name != "pages.py")
# What a script cannot be asked without.
NEEDED = {"scripts/analyze.py": ["x.pth"], "scripts/evaluate.py": ["x.pth"],
          "scripts/export.py": ["x.pth", "--out", "o"],
          "scripts/transfer.py": ["x.pth", "--dataset", "digits"],
          "scripts/experiments/class_means_finding.py": ["--path_t", "x.pth"],
          "scripts/reproduce.py": ["--pairs", "resnet14:resnet8", "--methods", "kd", "--dataset", "digits",
                                   "--teachers", "train"],
          "train_student.py": ["--path_t", "x.pth"]}


@pytest.mark.parametrize("script", [*SCRIPTS, "train_student.py", "train_teacher.py"])
def test_every_script_answers_help_and_dry_run_and_does_nothing_else(script, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (scripts.ROOT / "docs").rglob("*")}
    top = sorted(os.listdir(scripts.ROOT))
    shown = scripts.succeed(script, "--help")
    assert "usage:" in shown.stdout and not shown.stderr
    if script != "scripts/check_imports.py":  # which only looks
        assert "--dry_run" in shown.stdout
        dry = scripts.succeed(script, *NEEDED.get(script, []), "--dry_run")
        assert dry.stdout and not dry.stderr
    assert {path: path.stat().st_mtime_ns for path in (scripts.ROOT / "docs").rglob("*")} == before
    assert [name for name in sorted(os.listdir(scripts.ROOT)) if name != "__pycache__"] == [
        name for name in top if name != "__pycache__"]
