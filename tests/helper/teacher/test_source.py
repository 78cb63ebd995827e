"""The sources of a teacher's outputs."""
import pytest
import torch

import dataset
from distiller_zoo.ikd import IKD
from helper.teacher.source import CachedTeacher
from models import Outputs
from tests.support.teacher_cache import build, make_data

pytestmark = pytest.mark.usefixtures("one_thread")


def test_class_sums_are_over_all_views(tmp_path):
    data = make_data(6)
    labels = torch.tensor([0, 3, 3, 9, 0, 3])
    cache = build(tmp_path, 6)
    sums, counts = CachedTeacher({"logits": cache.table("logits")}, data.flip).class_sums(labels, 10)
    expected = torch.zeros(10, 10, dtype=torch.float64)
    for image, label in enumerate(labels):
        expected[label] += cache.table("logits")[image].double().sum(0)
    torch.testing.assert_close(sums, expected)
    assert counts.tolist() == [162, 0, 0, 243, 0, 0, 0, 0, 0, 81]

    ikd = IKD(10, 2.0, 1.0)
    ikd.fix_means(sums, counts)
    batch = dataset.Batch(None, labels, None, None)
    ikd.start_epoch(1, None)
    # Whatever the first epoch shows does not matter, and the term is silent in it, as published.
    assert ikd(Outputs(logits=torch.randn(6, 10)), Outputs(logits=torch.full((6, 10), 1e6)), batch) == 0
    ikd.end_epoch(1)
    torch.testing.assert_close(ikd.means[3], (expected[3] / 243).float())
    ikd.start_epoch(2, None)
    assert ikd(Outputs(logits=torch.randn(6, 10)), Outputs(), batch) > 0
