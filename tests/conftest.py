"""What several tests share."""
import pytest

from tests import scripts


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory):
    """The checkpoint of a resnet14 that train_teacher.py trained on the digits, well enough to teach."""
    save = tmp_path_factory.mktemp("teacher")
    scripts.succeed("train_teacher.py", "--model", "resnet14", "--dataset", "digits", "--epochs", 3,
                    "--lr_decay_epochs", "2", "--save_dir", save)
    return scripts.only(save / "models") / "resnet14_last.pth"
