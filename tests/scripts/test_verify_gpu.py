"""scripts/verify_gpu.py where there is no GPU, and how a check ends."""
import io
import json
import sys

import pytest
import torch

from helper.util.errors import UsageError
from scripts import verify_gpu


def test_without_a_gpu_it_says_what_it_would_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify_gpu.py", "--dry_run"])
    verify_gpu.main()
    said = capsys.readouterr().out
    assert "tests/gpu" in said and said.count("--step") == 8 and "scripts/bench.py" in said
    assert sum(limit for _, limit, _ in verify_gpu.checks()) <= 480
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["verify_gpu.py"])
        with pytest.raises(UsageError, match="no CUDA device here"):
            verify_gpu.main()


@pytest.mark.parametrize(("code", "limit", "passed"), (("pass", 20, True), ("1 / 0", 20, False),
                                                       ("import time; time.sleep(60)", 1, False)))
def test_each_check_leaves_a_line_and_a_deadline_ends_it(code, limit, passed, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    report = io.StringIO()
    assert verify_gpu.run_check("one", limit, [sys.executable, "-c", code], str(tmp_path), report) == passed
    line = json.loads(report.getvalue())
    assert line["passed"] == passed and line["device"] == "a card" and line["seconds"] < 20
