"""`--deterministic` on CUDA is refused before training where a gradient has no kernel that repeats itself."""
import pytest
import torch
import torch.nn.functional as F

import dataset
from distiller_zoo import METHODS
from helper import build
from helper.build import Objective
from helper.cli import student_options, teacher_options
from helper.deterministic import check_deterministic
from helper.util.errors import UsageError
from models import build as build_network
from models import model_dict
from models.resnet import THIN, ResNet

CUDA = torch.device("cuda")


def images_of(size):
    images = torch.zeros(20, 3, size, size, dtype=torch.uint8)
    few = dataset.Split(images, torch.arange(20) % 10)
    return dataset.Data("few", tuple("0123456789"), (0.5,) * 3, (0.5,) * 3, True, few, few)


def arguments_of(method, student="resnet8", teacher="resnet8", size=32):
    """What check_deterministic takes for a student."""
    options = student_options(["--path_t", "t", "--model_s", student, "--distill", method, "--avg", "2"])
    data, network = images_of(size), build_network(student, 10)
    setup = build.make_setup(network, build_network(teacher, 10), data, lambda name, compute: 1 - torch.eye(10))
    built = METHODS[method](setup, options)
    stage = built.stage(network)
    objectives = [Objective({stage.name: stage.term})] if stage else []
    return network, [*objectives, build.student_objective(built, setup, options)], setup.teacher, data


# Maps of 30x30, 15x15 and 8x8, or of 36x36, 18x18 and 9x9; fsp pools in its first stage.
@pytest.mark.parametrize("method, size, term", [
    ("fsp", 30, "flows"), ("catkd", 36, "catkd"), ("sdd", 36, "sdd"), ("reviewkd", 36, "reviewkd")])
def test_a_student_is_refused_as_it_is_built(method, size, term):
    options = student_options(["--path_t", "t", "--model_s", "resnet8", "--distill", method, "--deterministic"])
    teacher = build_network("resnet8", 10).requires_grad_(False)
    with pytest.raises(UsageError, match=f"--deterministic: {term} takes the gradient of adaptive average pooling"):
        build.make_student(options, images_of(size), teacher, CUDA)
    build.make_student(options, images_of(size), teacher, torch.device("cpu"))


class PoolsImages(ResNet):
    def outputs(self, x):
        return super().outputs(F.adaptive_avg_pool2d(F.relu(self.conv1(x)[:, :3]), 21))


def test_a_teacher_is_refused_as_it_is_built(monkeypatch):
    monkeypatch.setitem(model_dict, "pools", lambda num_classes: PoolsImages("pools", 8, THIN, num_classes))
    options = teacher_options(["--model", "pools", "--deterministic"])
    with pytest.raises(UsageError, match="--deterministic: pools takes the gradient of adaptive average pooling"):
        build.make_teacher(options, images_of(32), CUDA)
    build.make_teacher(options, images_of(32), torch.device("cpu"))


@pytest.mark.parametrize("method", METHODS)
def test_images_of_cifars_size_are_never_refused_and_nothing_changes(method):
    network, objectives, teacher, data = arguments_of(method)
    state = [{key: value.clone() for key, value in module.state_dict().items()} for module in (network, *objectives)]
    check_deterministic(network, objectives, teacher, data)
    for module, before in zip((network, *objectives), state, strict=True):
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_networks_of_other_sizes_are_not_refused():
    check_deterministic(*arguments_of("attention", "vgg8", "ResNet50"))


def test_the_teachers_maps_take_no_gradient():
    """norm pools them, here 7x7 to 4x4, by adaptive max pooling."""
    network, objectives, teacher, data = arguments_of("norm", "vgg8", "resnet8", 28)
    assert teacher.stages[-1].shape[2] == 7 and network(torch.zeros(2, 3, 28, 28), named=True).stages[-1].shape[2] == 3
    check_deterministic(network, objectives, teacher, data)
