"""What the name of a cache depends on."""
import copy
import dataclasses

import pytest

import dataset
from helper.teacher.keys import key_of
from tests.support.teacher_cache import make_data, make_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


def test_key_follows_everything_that_the_outputs_depend_on():
    network, data = make_teacher(), make_data(2)
    key = key_of(network, data, "float16", "float32")
    assert key == key_of(copy.deepcopy(network), make_data(2), "float16", "float32")
    other = copy.deepcopy(network)
    other.bn1.running_mean[0] += 1e-6
    images = data.train.images.clone()
    images[0, 0, 0, 0] ^= 1
    others = [
        key_of(other, data, "float16", "float32"),
        key_of(make_teacher(1), data, "float16", "float32"),
        key_of(network, dataclasses.replace(data, train=dataset.Split(images, data.train.labels)), "float16",
               "float32"),
        key_of(network, dataclasses.replace(data, mean=(0.3, 0.3, 0.3)), "float16", "float32"),
        key_of(network, dataclasses.replace(data, std=(0.3, 0.3, 0.3)), "float16", "float32"),
        key_of(network, dataclasses.replace(data, flip=True), "float16", "float32"),
        key_of(network, data, "float32", "float32"),
        key_of(network, data, "float16", "tf32"),
    ]
    assert len({key, *others}) == 9
