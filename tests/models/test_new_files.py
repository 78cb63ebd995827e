"""Adding a network or a data set is adding one file: the docs' examples, put into a copy of the repository."""
import shutil
import textwrap

import pytest

from tests.support import scripts


@pytest.fixture
def copy(tmp_path):
    for part in ("models", "distiller_zoo", "dataset", "helper", "train_student.py", "train_teacher.py"):
        source = scripts.ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / "copy" / part)
    return tmp_path / "copy"


def example(page, before, after):
    text = (scripts.ROOT / "docs" / page).read_text()
    return textwrap.dedent(text.split(before + "\n\n")[1].split("\n\n" + after)[0])


def test_the_docs_network_is_trained_and_teaches(copy, tmp_path):
    (copy / "models" / "mine.py").write_text(example("models.md", "and teach:", "A field of `Outputs`"))
    flags = ("--dataset", "digits", "--epochs", 1, "--batch_size", 256, "--save_dir", tmp_path)
    scripts.succeed("train_teacher.py", "--model", "mine16", *flags, root=copy)
    teacher = scripts.only(scripts.only(tmp_path / "models", "mine16_*"), "mine16_last.pth")
    run = scripts.succeed("train_student.py", "--path_t", teacher, "--model_s", "mine8", "--distill", "similarity",
                          *flags, root=copy)
    assert "mine16" in run.stdout
    refused = scripts.run("train_teacher.py", "--model", "mine9", *flags, root=copy)
    assert refused.returncode == 2 and "did you mean mine8 or mine16" in refused.stderr


def test_the_docs_data_set_is_trained_on(copy, tmp_path):
    (copy / "dataset" / "stripes.py").write_text(example("data.md", "can be trained on:", "Images too many for"))
    scripts.succeed("train_teacher.py", "--model", "resnet8", "--dataset", "stripes", "--epochs", 2, "--batch_size", 50,
                    "--save_dir", tmp_path, root=copy)
    (_, last) = scripts.read_log(scripts.only(tmp_path / "models"))
    assert last["test_top1"] > 90
    refused = scripts.run("train_teacher.py", "--dataset", "stripes", "--image_size", 64, root=copy)
    assert refused.returncode == 2 and "stripes has no use for it" in refused.stderr


@pytest.mark.parametrize("content, says", [
    ("import no_such_module\n", "no_such_module"),
    ("", "models.mine names no network in __all__"),
    ("from models.vgg import vgg8\n__all__ = ['vgg8']\n", "models.mine and models.vgg both define the network 'vgg8'"),
])
def test_a_file_that_defines_no_network_is_not_passed_over(copy, content, says):
    (copy / "models" / "mine.py").write_text(content)
    process = scripts.run("train_teacher.py", "--help", root=copy)
    assert process.returncode != 0 and says in process.stderr


def test_a_file_that_defines_no_data_set_is_not_passed_over(copy):
    (copy / "dataset" / "mine.py").write_text("")
    process = scripts.run("train_teacher.py", "--help", root=copy)
    assert process.returncode != 0 and "dataset.mine" in process.stderr
