"""The matrix of a teacher's classes is computed once, and again where what was kept is damaged."""
import torch

from helper.teacher.classes import class_matrix
from helper.util.files import write_torch
from tests.helper.teacher.test_cache import make_data, make_teacher
from tests.support import scripts


def test_a_matrix_is_computed_once_and_again_where_its_file_is_damaged(tmp_path):
    computed = []

    def compute(features, labels, classes):
        computed.append(features.shape)
        return torch.arange(100.0).view(10, 10)

    def matrix():
        return class_matrix("test", compute, make_teacher(), make_data(20), str(tmp_path), torch.device("cpu"))

    wanted = matrix()
    assert torch.equal(matrix(), wanted) and computed == [(20, 64)]
    path = scripts.only(tmp_path / "classes")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-9], b"\x80\x02e", b"\x80\x02J", b"PK\x03\x04", {}, torch.zeros(3)):
        path.write_bytes(damaged) if isinstance(damaged, bytes) else write_torch(str(path), damaged)
        computed.clear()
        assert torch.equal(matrix(), wanted) and len(computed) == 1 and path.read_bytes() == whole
    path.unlink()
    path.mkdir()  # nothing can be kept there
    assert torch.equal(matrix(), wanted)
