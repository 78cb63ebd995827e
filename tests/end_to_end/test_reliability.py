"""Nothing is lost: files appear whole or not at all, and what cannot be written ends a run with one line."""
import shutil
import signal

import torch

from tests.support import scripts

# Files of at most 400 kB, where resnet8's state takes more: what a full disk does.
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
sys.argv = sys.argv[1:]
sys.path.insert(0, {root!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_ends_the_run_with_one_line_and_the_last_state_intact(digits_teacher, tmp_path):
    flags = ("--path_t", digits_teacher, "--dataset", "digits", "--imbalance", 0.01, "--epochs", 4,
             "--save_dir", tmp_path / "save")
    process = scripts.Process("train_student.py", *flags)
    process.until("train 2/4")
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    folder = scripts.only(tmp_path / "save" / "student_model")
    before = torch.load(folder / "resume.pth", weights_only=True)

    script = tmp_path / "limited.py"
    script.write_text(LIMITED.format(root=str(scripts.ROOT)))
    full = scripts.run(str(script), "train_student.py", *flags)
    assert full.returncode == 1 and full.stderr.count("\n") == 1
    assert "File too large" in full.stderr and "the same command continues from what was saved before" in full.stderr
    after = torch.load(folder / "resume.pth", weights_only=True)
    assert after["epoch"] == before["epoch"] and not list(folder.glob("*.partial"))

    scripts.succeed("train_student.py", *flags)
    assert [line["epoch"] for line in scripts.read_log(folder)] == [1, 2, 3, 4]


def test_a_folder_that_vanishes_ends_the_run_with_one_line(digits_teacher, tmp_path):
    process = scripts.Process("train_student.py", "--path_t", digits_teacher, "--dataset", "digits",
                              "--imbalance", 0.01, "--epochs", 50, "--save_dir", tmp_path)
    process.until("train  1/50")
    shutil.rmtree(tmp_path / "student_model")
    assert process.wait() == 1
    assert process.stderr.count("\n") == 1 and ".lock was removed" in process.stderr


def test_a_signal_before_the_first_epoch_ends_with_one_line_too(digits_teacher, tmp_path):
    process = scripts.Process("train_student.py", "--path_t", digits_teacher, "--dataset", "digits",
                              "--save_dir", tmp_path, "--epochs", 50)
    process.until("student ")
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.count("\n") == 1 and "stopped by SIGINT" in process.stderr


