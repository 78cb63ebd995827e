"""Images in class folders: torchvision's layout and transforms, bit-identical whatever the workers, faults named."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms
from torchvision.transforms import v2

import dataset
from dataset import DataError, _stream
from dataset._stream import problems
from dataset.folder import MEAN, STD
from models import model_dict
from tests.end_to_end.test_resume import assert_same, record
from tests.support import scripts

CPU = torch.device("cpu")
FINISH = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]


def write_images(folder, n, seed, kind="jpg"):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        height, width = rng.integers(33, 60, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.{kind}")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """train/ and val/ of three classes; with a grey, a transparent and a nested image, and a text."""
    root = tmp_path_factory.mktemp("images")
    for seed, (name, n) in enumerate({"bee": 7, "ant": 5, "cat": 4}.items()):
        write_images(root / "train" / name, n, seed)
        write_images(root / "val" / name, 3, 10 + seed, "png")
    Image.new("L", (40, 50), 77).save(root / "train/ant/grey.jpg")
    Image.new("RGBA", (40, 50), (9, 99, 199, 50)).save(root / "train/ant/transparent.png")
    write_images(root / "train/cat/more", 1, 20, "JPEG")
    (root / "train/ant/notes.txt").write_text("no image")
    return root


@pytest.fixture
def copy(images, tmp_path):
    return shutil.copytree(images, tmp_path / "images")


def load(root, **settings):
    return dataset.load("folder", str(root), **{"image_size": 32} | settings)


def batches(data, plan, batch_size=4):
    return list(data.train_views(CPU).batches(plan, batch_size))


def test_classes_samples_and_their_order_are_those_of_image_folder(images):
    data = load(images)
    for part, name in ((data.train, "train"), (data.test, "val")):
        theirs = datasets.ImageFolder(images / name)
        assert [(part.path(i), part.labels[i].item()) for i in range(len(part))] == theirs.samples
        assert data.classes == tuple(theirs.classes) == ("ant", "bee", "cat")
    assert (len(data.train), len(data.test), data.image_shape) == (19, 9, (3, 32, 32))
    assert dataset.load("imagenet", str(images)).image_shape == (3, 224, 224)


def test_a_view_equals_torchvisions_transforms_from_its_seed(images):
    data = load(images)
    theirs = datasets.ImageFolder(images / "train", v2.Compose([
        v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), *FINISH]))
    plan = data.train_views(CPU).plan(0, "1", "train", 1)
    shown = batches(data, plan)
    assert [len(batch.labels) for batch in shown] == [4, 4, 4, 4, 3]
    assert torch.equal(torch.cat([batch.index for batch in shown]), plan[0]) and shown[0].view is None
    assert sorted(plan[0].tolist()) == list(range(19))
    seeds = iter(plan[1].tolist())
    for batch in shown:
        for image, label, index in zip(batch.images, batch.labels, batch.index, strict=True):
            torch.manual_seed(next(seeds))
            expected, its_label = theirs[index]
            assert torch.equal(image, expected) and label == its_label


def test_test_images_equal_torchvisions_transforms(images):
    theirs = datasets.ImageFolder(images / "val", v2.Compose([
        v2.Resize(37), v2.CenterCrop(32), *FINISH]))
    shown = list(load(images, num_workers=1).test_images(CPU).batches(5))
    assert [len(labels) for _, labels in shown] == [5, 4]
    assert torch.equal(torch.cat([part for part, _ in shown]), torch.stack([image for image, _ in theirs]))
    assert torch.cat([labels for _, labels in shown]).tolist() == theirs.targets


def test_views_depend_on_seed_trial_phase_epoch_and_image_alone(images):
    base = (0, "1", "train", 1)
    data = load(images)
    views = data.train_views(CPU)
    whole = torch.cat([batch.images for batch in batches(data, views.plan(*base))])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for workers, batch_size in ((2, 4), (1, 7), (0, 19)):
        again = load(images, num_workers=workers)
        assert torch.equal(torch.cat([b.images for b in batches(again, views.plan(*base), batch_size)]), whole)
    assert torch.equal(torch.get_rng_state(), state)  # which dropout draws from
    for other in [(1, "1", "train", 1), (0, "2", "train", 1), (0, "1", "first", 1), (0, "1", "train", 2)]:
        changed = views.plan(*other)
        assert all(not torch.equal(a, b) for a, b in zip(views.plan(*base), changed, strict=True))
    shown = [batches(data, (torch.tensor([3]), torch.tensor([seed])))[0].images.sum().item() for seed in range(5)]
    assert len(set(shown)) == 5


def test_large_test_images_come_in_smaller_batches(images):
    assert [len(labels) for _, labels in load(images, image_size=896).test_images(CPU).batches(500)] == [4, 4, 1]


# What is taken from a good folder, what is put there (a file, or a folder by its last slash), what the line must say.
FAULTS = [
    ("train", "", "train does not exist: --data_dir takes a folder that holds train/CLASS and val/CLASS or test/CLASS"),
    ("val", "", "val does not exist: --data_dir takes a folder that holds"),
    ("train", "train", "train is a file"),
    ("val", "val", "val is a file"),
    ("train", "train/", "train holds no class folder"),
    ("val/ant val/bee val/cat", "val/0.jpg", "val holds 1 images but no class folder: put the images of each class"),
    ("val/bee", "", "val lacks the class folder bee that"),
    ("train/ant train/bee", "", "train lacks the 2 class folders ant, bee that"),
    ("train/bee", "train/bee/", "train has no image in the class folder bee"),
    ("val/cat", "val/cat/", "val has no image in the class folder cat"),
    ("train/ant train/bee val/ant val/bee", "", "train holds one class folder, cat: two or more are needed"),
]


@pytest.mark.parametrize("taken, put, says", FAULTS)
def test_a_folder_that_is_not_what_it_should_be_is_named(taken, put, says, copy):
    for name in taken.split():
        shutil.rmtree(copy / name)
    if put:
        (copy / put).mkdir() if put.endswith("/") else (copy / put).touch()
    with pytest.raises(DataError) as caught:
        load(copy)
    assert says in str(caught.value) and "\n" not in str(caught.value) and str(copy) in str(caught.value)


def test_a_test_folder_takes_the_place_of_val_for_own_folders_alone(copy):
    (copy / "val").rename(copy / "test")
    (copy / "test/.hidden").mkdir()
    assert len(load(copy).test) == 9
    with pytest.raises(DataError, match="val does not exist"):
        dataset.load("imagenet", str(copy))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_and_left_out_only_by_the_flag(workers, copy, capsys):
    good = (copy / "train/bee/3.jpg").read_bytes()
    (copy / "train/bee/3.jpg").write_bytes(good[: len(good) // 2])
    (copy / "train/cat/1.jpg").write_bytes(b"")
    (copy / "val/ant/2.png").write_text("<html>")
    data = load(copy, num_workers=workers)
    with pytest.raises(DataError, match=r"train/(bee/3|cat/1).jpg cannot be read \(.*give --skip_unreadable"):
        batches(data, data.train_views(CPU).plan(0, "1", "train", 1))
    with pytest.raises(DataError, match=r"val/ant/2.png cannot be read \(it is no JPEG, PNG"):
        list(data.test_images(CPU).batches(4))
    capsys.readouterr()
    data = load(copy, num_workers=workers, skip_unreadable=True)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert len(notes) == 2 and "2 of 19 images are left out" in notes[0] and "1 of 9 images" in notes[1]
    assert "bee/3.jpg cannot be read" in notes[0] and "cat/1.jpg cannot be read" in notes[0]
    assert (len(data.train), len(data.test)) == (17, 8)
    assert sum(len(batch.labels) for batch in batches(data, data.train_views(CPU).plan(0, "1", "train", 1))) == 17


def test_a_class_of_unreadable_images_alone_is_refused(copy):
    for path in (copy / "train/bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="train has no image in the class folder bee"):
        load(copy, skip_unreadable=True)


def test_only_the_formats_of_images_are_opened_and_only_regular_files(copy):
    (copy / "train/bee/0.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    Image.fromarray(np.full((40, 40), 300, dtype=np.uint16)).save(copy / "train/bee/1.png")
    (copy / "train/bee/2.jpg").unlink()
    os.mkfifo(copy / "train/bee/2.jpg")
    files = load(copy).train
    said = [problem for problem in problems(files) if problem]
    assert len(said) == 3
    for name, reason in (("0.jpg", "it is no JPEG, PNG, PPM, BMP, TIFF or WEBP"),
                         ("1.png", "it has more than 8 bits a channel: convert it to 8"),
                         ("2.jpg", "it is a pipe or a device, not a file")):
        assert sum(f"train/bee/{name} cannot be read ({reason})" in line for line in said) == 1


def test_a_subfolder_that_cannot_be_read_is_not_left_out_silently(copy):
    # Root may read any folder, but nobody one whose path is too long.
    folder = os.open(copy / "train/bee", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=folder)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    with pytest.raises(DataError, match=r"train/bee/xxx.* cannot be read \(File name too long\)"):
        load(copy)


def test_a_file_with_other_content_is_another_data_set(copy):
    before = load(copy).content()
    assert load(copy).content() == before
    path = copy / "val/ant/0.png"
    path.write_bytes((copy / "val/ant/1.png").read_bytes())
    assert load(copy).content() != before


def teacher(folder):
    folder.mkdir()
    torch.manual_seed(0)
    torch.save({"model": model_dict["resnet8"](num_classes=3).state_dict()}, folder / "resnet8.pth")
    return folder / "resnet8.pth"


def children(pid, patience=60):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            found = [int(child) for child in file.read().split()]
        if found:
            return found
    raise AssertionError("no worker was seen")


def test_a_run_stopped_with_its_workers_ends_with_the_same_bits(images, copy, tmp_path):
    flags = ("--path_t", teacher(tmp_path / "resnet8_t"), "--dataset", "folder", "--image_size", 32, "--distill", "kd",
             "-r", 0.1, "-a", 0.9, "--avg", 1, "--epochs", 8, "--batch_size", 8, "--teacher_cache", "on")
    whole = scripts.succeed("train_student.py", *flags, "--data_dir", images, "--num_workers", 0,
                            "--save_dir", tmp_path / "a")
    assert "live teacher: folder has unbounded random augmentation" in whole.stdout
    there = (*flags, "--data_dir", copy, "--save_dir", tmp_path / "b")
    process = scripts.Process("train_student.py", *there, "--num_workers", 1)
    process.until("train 2/8")
    for pid in (*children(process.pid), process.pid):  # as a batch system does
        os.kill(pid, signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, process.stderr
    assert process.stderr == "error: stopped by SIGTERM; the same command continues from the last finished epoch\n"

    (copy / "train/ant/0.jpg").rename(copy / "train/ant/00.jpg")
    refused = scripts.run("train_student.py", *there)
    assert refused.returncode == 2 and "data_content 19+9 images, " in refused.stderr
    (copy / "train/ant/00.jpg").rename(copy / "train/ant/0.jpg")

    assert "continuing after epoch" in scripts.succeed("train_student.py", *there, "--num_workers", 0).stdout
    a, b = (record(scripts.only(tmp_path / save / "student_model")) for save in "ab")
    assert_same(a, b)
    args = json.loads((scripts.only(tmp_path / "b/student_model") / "args.json").read_text())
    assert args["decisions"]["teacher_source"] == "live" and args["settings"]["image_size"] == 32


def test_an_unreadable_image_ends_a_run_with_one_line(copy, tmp_path):
    (copy / "train/bee/3.jpg").write_bytes(b"")
    process = scripts.run("train_teacher.py", "--model", "resnet8", "--dataset", "folder", "--data_dir", copy,
                          "--image_size", 32, "--epochs", 1, "--num_workers", 0, "--save_dir", tmp_path / "save")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert "train/bee/3.jpg cannot be read" in process.stderr and "--skip_unreadable" in process.stderr


NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
             'mount -t tmpfs -o $0 none /dev/shm && exec "$@"')


@pytest.mark.parametrize("shm, says", [("ro", "/dev/shm: Read-only file system, and processes that read images"),
                                       ("size=100k", "a process that reads images has died (")])
def test_shared_memory_that_cannot_be_written_ends_a_run_with_one_line(shm, says, images, tmp_path):
    if not shutil.which("unshare") or subprocess.run([*NAMESPACE, shm, "true"], capture_output=True).returncode != 0:
        pytest.skip("mounting is not permitted here")
    command = [sys.executable, "train_teacher.py", "--model", "resnet8", "--dataset", "folder", "--data_dir", images,
               "--image_size", "32", "--epochs", "1", "--num_workers", "1", "--save_dir", tmp_path]
    process = subprocess.run([*NAMESPACE, shm, *command], cwd=scripts.ROOT, capture_output=True, text=True, timeout=240)
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith(f"error: {says}") and process.stderr.endswith("0\n"), process.stderr


RAISING = """
import sys, torch, dataset
data = dataset.load("folder", sys.argv[1], image_size=32, num_workers=2)
views = data.train_views(torch.device("cpu"))
batches = views.batches(views.plan(0, "1", "train", 1), 2)
next(batches)
print(open(f"/proc/self/task/{__import__('os').getpid()}/children").read(), flush=True)
raise RuntimeError("a step has failed")
"""


def test_an_exception_leaves_no_process_behind(images):
    """With the iterator still held, as by a traceback: Python waits for workers at its end, which ignore SIGTERM."""
    root = os.path.dirname(os.path.dirname(dataset.__file__))
    ended = subprocess.run([sys.executable, "-c", RAISING, str(images)], cwd=root, capture_output=True, text=True,
                           timeout=60)
    assert ended.returncode == 1 and "a step has failed" in ended.stderr
    workers = ended.stdout.split()
    assert workers and not any(os.path.exists(f"/proc/{pid}") for pid in workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_transform_raises_names_the_image(workers, images):
    def transform(image):
        raise ArithmeticError("nothing\nto show")

    data = load(images, num_workers=workers)
    plan = torch.arange(4), torch.arange(4)
    with pytest.raises(DataError, match=r"ant/0.jpg cannot be transformed \(nothing to show\): repair or remove it"):
        list(_stream.read(data.train, transform, plan, 2, CPU))


@pytest.mark.parametrize("method, says", [
    ("crld", "a second view of each image is made of data sets in memory alone: take a method that reads one view"),
    ("wkd", "are taken from data sets in memory alone: take another method, or wkd with --wkd_cost fc")])
def test_a_method_that_needs_the_images_in_memory_is_refused(method, says, images, tmp_path):
    process = scripts.run("train_student.py", "--path_t", teacher(tmp_path / "resnet8_t"), "--dataset", "folder",
                          "--data_dir", images, "--image_size", 32, "--num_workers", 0, "--save_dir", tmp_path,
                          "--distill", method)
    assert process.returncode == 2 and says in process.stderr and process.stderr.count("\n") == 1


def test_means_over_all_views_are_refused_where_these_cannot_be_counted(images, tmp_path):
    process = scripts.run("train_student.py", "--path_t", teacher(tmp_path / "resnet8_t"), "--dataset", "folder",
                          "--data_dir", images, "--image_size", 32, "--avg", 1, "--ikd_means", "all",
                          "--num_workers", 0, "--save_dir", tmp_path, "--teacher_cache", "on")
    assert process.returncode == 2 and "unbounded random augmentation" in process.stderr
