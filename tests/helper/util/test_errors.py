"""How a run ends that cannot continue: one line, and no traceback."""
import pytest
import torch

from helper.util.errors import RunError, UsageError, guarded


@pytest.mark.parametrize(("error", "code", "says"), (
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."), 1,
     "error: the GPU's memory is full: give a smaller --batch_size, --cuda_graph off, or --teacher_cache off; the same "
     "command continues from the last finished epoch\n"),
    (UsageError("two\nlines"), 2, "error: two lines\n"),
    (RunError("over"), 1, "error: over\n")))
def test_a_known_end_is_one_line(error, code, says, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded(main)
    assert ended.value.code == code and capsys.readouterr().err == says


def test_a_fault_of_this_code_keeps_its_traceback():
    def main():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        guarded(main)
