"""Of what the matrix of a teacher's classes is made, and when it is made anew."""
import dataclasses

import pytest
import torch

import dataset
from distiller_zoo import MethodError
from helper.teacher import classes
from helper.teacher.classes import class_matrix
from tests.support.teacher_cache import CPU, make_data, make_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def asked(tmp_path):
    """asked(network, data, name) -> the matrix; asked.seen: the features and labels of each that was computed."""
    def ask(network, data, name="sums", folder=tmp_path):
        def compute(features, labels, num_classes):
            ask.seen.append((features, labels))
            return torch.zeros(num_classes, features.shape[1]).index_add(0, labels, features)

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
    images = torch.cat([images for images, _ in dataclasses.replace(data, test=data.train).test_images(CPU).batches(20)])
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
