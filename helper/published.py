"""Published test accuracies on CIFAR-100, to hold a teacher against.

RepDistiller's README (Tian, Krishnan and Isola, ICLR 2020): the checkpoints that it publishes.
"""

TEACHERS = {"wrn_40_2": 75.61, "resnet56": 72.34, "resnet110": 74.31, "resnet32x4": 79.42, "vgg13": 74.64,
            "ResNet50": 79.34}
FAR = 0.5


def teacher_warning(name: str, dataset: str, top1: float) -> str | None:
    """A line where a teacher on CIFAR-100 tests more than FAR points from the published one of its name.

    name: the model's; top1: its measured accuracy, in percent
    """
    published = TEACHERS.get(name) if dataset == "cifar100" else None
    if published is None or abs(top1 - published) <= FAR:
        return None
    return (f"this teacher tests at {top1:.2f}, the published {name} at {published:.2f}: "
            "students of it do not compare with the published ones")
