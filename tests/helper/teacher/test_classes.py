"""The matrix of a teacher's classes: what it is made of, and when it is made anew."""
import dataclasses

import pytest
import torch

import dataset
from distiller_zoo import MethodError
from helper.teacher import classes
from helper.teacher.classes import class_matrix
from helper.util.files import write_torch
from tests.support import scripts
from tests.support.teacher_cache import CPU, make_data, make_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def asked(tmp_path):
    """asked(network, data, name) -> the matrix; asked.seen: the features and labels of each that was computed."""
    def ask(network, data, name="sums", folder=tmp_path):
        def compute(features, labels, num_classes):
            ask.seen.append((features, labels))
            return features[:, :num_classes].T @ features[:, :num_classes]

        return class_matrix(name, compute, network, data, str(folder), CPU)

    ask.seen = []
    return ask


def test_it_is_of_the_pooled_vectors_of_the_images_as_they_are(asked, monkeypatch):
    monkeypatch.setattr(classes, "BATCH", 7)
    network, data = make_teacher(), make_data(20, flip=True)
    network.train()
    asked(network, data)
    (features, labels), = asked.seen
    assert torch.equal(labels, data.train.labels)
    tested = dataclasses.replace(data, test=data.train).test_images(CPU)
    images = torch.cat([images for images, _ in tested.batches(20)])
    assert torch.equal(images, data.train_views(CPU).gather(torch.arange(20), torch.full((20,), classes.PLAIN)))
    torch.testing.assert_close(features, network.eval()(images, named=True).pooled)


def test_it_is_kept_for_the_teacher_the_data_and_the_name(asked):
    network, data = make_teacher(), make_data(20)
    first = asked(network, data)
    assert torch.equal(asked(network, data), first) and len(asked.seen) == 1
    relabelled = dataclasses.replace(data, train=dataset.Split(data.train.images, data.train.labels.roll(1)))
    for others in ((make_teacher(1), data), (network, make_data(19)), (network, relabelled), (network, data, "other")):
        asked(*others)
        asked(*others)
    assert len(asked.seen) == 5
    assert torch.equal(asked(network, data), first) and len(asked.seen) == 5


def test_a_teacher_without_a_pooled_vector_is_refused(asked):
    network = make_teacher()
    outputs = network.outputs
    network.outputs = lambda x: outputs(x)._replace(pooled=None)
    with pytest.raises(MethodError, match="resnet8 offers no pooled vector"):
        asked(network, make_data(8))


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
