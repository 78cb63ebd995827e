"""scripts/verify_gpu.py where there is no GPU, and how a check ends."""
import io
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from scripts import verify_gpu
from tests.support import scripts

NAMES = ["tests", *(f"step_{teacher}_{precision}_{way}" for teacher in ("live", "cached")
                    for precision in ("float32", "fast") for way in ("eager", "captured")),
         "step_crd", "step_kdsvd", "epoch_live", "epoch_cached", "several_runs", "profile", "bench"]


def test_without_a_gpu_it_says_what_it_would_do(monkeypatch):
    dry = scripts.succeed("scripts/verify_gpu.py", "--dry_run").stdout.splitlines()
    assert [line.split(",")[0] for line in dry[::2]] == [f"# {name}" for name in NAMES]
    assert "-m pytest tests/gpu" in dry[1] and all(f"--only {name}" in line
                                                   for name, line in zip(NAMES[1:-1], dry[3:-1:2], strict=True))
    if not torch.cuda.is_available():
        process = scripts.run("scripts/verify_gpu.py")
        assert process.returncode == 2 and process.stdout.splitlines() == dry
        assert process.stderr.startswith("error: PyTorch finds no CUDA device here: none of the above was run")


@pytest.fixture
def a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")


@pytest.mark.parametrize(("code", "limit", "passed"), (("pass", 20, True), ("1 / 0", 20, False),
                                                       ("import time; time.sleep(60)", 1, False)))
def test_each_check_leaves_a_line_and_a_deadline_ends_it(code, limit, passed, tmp_path, a_card):
    report = io.StringIO()
    assert verify_gpu.run_check("one", limit, [sys.executable, "-c", code], str(tmp_path), report) == passed
    line = json.loads(report.getvalue())
    assert line["passed"] == passed and line["device"] == "a card" and line["seconds"] < 20
    assert ("ZeroDivisionError" in (tmp_path / "one.log").read_text()) == (code == "1 / 0")


def runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_check_ends_with_all_that_it_has_started(tmp_path, a_card):
    starts = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    verify_gpu.run_check("one", 2, [sys.executable, "-c", starts], str(tmp_path), io.StringIO())
    started = (tmp_path / "one.log").read_text().strip()
    deadline = time.monotonic() + 10
    while runs(started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_goes_on_after_what_fails_and_ends_when_its_time_is_over(tmp_path, a_card, monkeypatch, capsys):
    codes = {"one": "1 / 0", "profile": "print('noise'); print('{\"kernels\": []}')", "slow": "while True: pass",
             "last": "pass"}
    monkeypatch.setattr(verify_gpu, "checks", lambda: [(name, 5 if name == "slow" else 300,
                                                        [sys.executable, "-c", code]) for name, code in codes.items()])
    monkeypatch.setattr(sys, "argv", ["verify_gpu.py", "--out", str(tmp_path), "--patience", "0.2"])
    monkeypatch.setattr(verify_gpu, "SECONDS", 3000)
    with pytest.raises(verify_gpu.RunError, match=r"2 checks failed \(one, slow\)"):
        verify_gpu.main()
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [(line["check"], line["exit_code"]) for line in lines] == [("one", 1), ("profile", 0), ("slow", None),
                                                                      ("last", 0)]
    assert lines[1]["measured"] == {"kernels": []}
    assert "timed out  slow" in capsys.readouterr().out
    monkeypatch.setattr(verify_gpu, "SECONDS", 0)
    with pytest.raises(verify_gpu.RunError, match="4 checks failed"):
        verify_gpu.main()
