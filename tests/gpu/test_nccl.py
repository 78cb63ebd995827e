"""Several CUDA devices train one student, as a single one does: torchrun with NCCL."""
import pytest
import torch

from tests.end_to_end.test_distributed import FLAGS, run, same
from tests.support.on_gpu import needs_gpu

pytestmark = [*needs_gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]


# Means over the samples, relations between them with banks, and a first stage.
@pytest.mark.parametrize("method", ["kd", "crd", "hint"])
def test_two_devices_train_as_one_does(method, tmp_path, digits_teacher):
    """With batch norm over the whole batch, as FLAGS have it."""
    for processes in (1, 2):
        done = run(processes, "train_student.py", *FLAGS, "--device", "cuda", "--tf32", "off", "--path_t",
                   digits_teacher, "--distill", method, "--save_dir", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
        assert processes == 1 or "in each of 2 processes" in done.stdout
    same(tmp_path / "2", tmp_path / "1", method)
