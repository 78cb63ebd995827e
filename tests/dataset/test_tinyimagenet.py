"""Tiny-ImageNet as it is distributed: fetched whole or not at all, its annotations read, its faults named."""
import hashlib
import io
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from dataset import DataError, tinyimagenet
from helper.util import download
from models import model_dict
from tests.support import scripts
from tests.support.server import endless, sends, serving, status

# Not in alphabetical order, as in the real wnids.txt.
WNIDS = ("n03", "n01", "n02")
TRAIN, TEST = 4, 8


def colour(label, shade):
    """The colour of a class's images: pixels tell the label, and the image."""
    return tuple(200 if channel == label else 10 * shade for channel in range(3))


def jpeg(label, shade=0, size=64, mode="RGB"):
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour(label, shade)).convert(mode).save(file, "JPEG", quality=95)
    return file.getvalue()


def good(classes=3, train=TRAIN):
    """{path: content} of the files in tiny-imagenet-200, in its format."""
    wnids = WNIDS[:classes]
    files = {"wnids.txt": "\n".join(wnids).encode() + b"\n", "words.txt": b"n01\tcat\n", "test/images/test_0.JPEG": b""}
    for label, wnid in enumerate(wnids):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        files |= {f"train/{wnid}/images/{wnid}_{i}.JPEG": jpeg(label, i) for i in range(train)}
    # Neither sorted by class nor in the order of the files.
    order = [5, 2, 7, 1, 0, 3, 6, 4]
    files |= {f"val/images/val_{i}.JPEG": jpeg(i % classes, i) for i in order}
    lines = [f"val_{i}.JPEG\t{wnids[i % classes]}\t0\t0\t62\t62" for i in order]
    return files | {"val/val_annotations.txt": "\n".join(lines).encode() + b"\n"}


def archive(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("tiny-imagenet-200/", b"")
        for name, value in files.items():
            file.writestr(zipfile.ZipInfo(f"tiny-imagenet-200/{name}"), value)
    return content.getvalue()


def unpack(files, root):
    for name, value in files.items():
        path = root / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)
    return root


def load(root, **settings):
    return dataset.load("tinyimagenet", str(root), **settings)


def assert_as_made(data):
    assert data.classes == WNIDS and (len(data.train), len(data.test)) == (3 * TRAIN, TEST) and data.flip
    assert data.train.images.shape == (3 * TRAIN, 3, 64, 64) and data.train.images.dtype == torch.uint8
    for split in (data.train, data.test):
        # The brightest channel is the image's true class.
        assert torch.equal(split.images.float().mean((2, 3)).argmax(1), split.labels)
    assert torch.bincount(data.train.labels).tolist() == [TRAIN] * 3
    assert data.test.labels.tolist() == [2, 2, 1, 1, 0, 0, 0, 1]


@pytest.fixture
def server(monkeypatch):
    with serving() as server:
        server.files["/tiny-imagenet-200.zip"] = archive(good())
        monkeypatch.setattr(tinyimagenet, "URL", f"{server.address}/tiny-imagenet-200.zip")
        monkeypatch.setattr(tinyimagenet, "MD5", hashlib.md5(server.files["/tiny-imagenet-200.zip"]).hexdigest())
        monkeypatch.setattr(download, "PAUSE", 0)
        yield server


def test_it_is_fetched_decoded_once_and_its_annotations_are_read(server, tmp_path, capsys):
    first = load(tmp_path / "data")
    assert "fetching" in capsys.readouterr().out
    assert_as_made(first)
    again = load(tmp_path / "data")
    assert "decoding" not in capsys.readouterr().out and len(server.requests) == 1
    assert torch.equal(again.train.images, first.train.images) and torch.equal(again.test.images, first.test.images)
    assert_as_made(again)
    # A view machinery for 32x32 images serves 64x64 ones as well.
    assert again.train_views(torch.device("cpu")).gather(torch.tensor([3]), torch.tensor([161])).shape == (1, 3, 64, 64)


def test_a_broken_download_is_tried_again(server, tmp_path):
    server.plan["/tiny-imagenet-200.zip"] = [sends(1000)]
    assert_as_made(load(tmp_path))
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault, says", [
    (sends(content=b"<html>we are down</html>"), "is not the file meant"),
    (status(404), "HTTP 404 Not Found"),
    (endless, "more than 300 MB"),
])
def test_what_cannot_be_fetched_says_what_to_put_where(fault, says, server, tmp_path):
    server.plan["/tiny-imagenet-200.zip"] = [fault]
    with pytest.raises(DataError, match=rf"cannot be fetched \(.*{says}.*\): put .*200 into .* \(--data_dir\)"):
        load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_folder_is_read_as_the_archive_is(tmp_path):
    assert_as_made(load(unpack(good(), tmp_path)))
    assert_as_made(load(tmp_path / "tiny-imagenet-200"))  # pointing --data_dir at it is as good


def test_a_changed_source_or_a_damaged_file_of_decoded_images_is_decoded_again(tmp_path, capsys):
    load(unpack(good(), tmp_path))
    decoded = tmp_path / tinyimagenet.DECODED
    capsys.readouterr()
    for spoil in (lambda: decoded.write_bytes(decoded.read_bytes()[:-500]), lambda: decoded.write_bytes(b""),
                  lambda: torch.save([1], decoded),
                  lambda: (tmp_path / "tiny-imagenet-200/train/n01/images/n01_0.JPEG").write_bytes(jpeg(1, 9))):
        spoil()
        data = load(tmp_path)
        assert "decoding 20 images" in capsys.readouterr().out
        load(tmp_path)
        assert "decoding" not in capsys.readouterr().out
    assert 88 <= data.train.images[TRAIN, 0].float().mean() <= 92


def test_grey_images_become_rgb(tmp_path):
    data = load(unpack(good() | {"train/n03/images/n03_0.JPEG": jpeg(0, mode="L")}, tmp_path))
    assert (data.train.images[0].amax(0) == data.train.images[0].amin(0)).all()


ANNOTATIONS = good()["val/val_annotations.txt"]


@pytest.mark.parametrize("change, says", [
    ({"wnids.txt": None}, "tiny-imagenet-200 has no wnids.txt"),
    ({"wnids.txt": b"n01\nn01\n"}, "does not name two or more classes, each once"),
    ({"wnids.txt": b"n03\nn01\n"}, "holds train/n02/images/n02_0.JPEG, and wnids.txt names no class n02"),
    ({"wnids.txt": b"n03\nn01\nn02\nn04\n"}, "has no image in train/n04/images"),
    ({"val/val_annotations.txt": None}, "has no val/val_annotations.txt"),
    ({"val/val_annotations.txt": ANNOTATIONS + b"val_8.JPEG\tn01\t0\t0\t1\t1\n"},
     "names 'val_8.JPEG', which is not in val/images"),
    ({"val/val_annotations.txt": ANNOTATIONS.replace(b"n03", b"n99", 1)},
     "the class 'n99', which wnids.txt does not name"),
    ({"val/val_annotations.txt": ANNOTATIONS + b"val_1.JPEG\tn01\n"}, "names val_1.JPEG twice"),
    ({"val/val_annotations.txt": ANNOTATIONS + b"\n"}, "names 'nothing', which is not in"),
    ({"val/images/val_9.JPEG": b""}, "does not name 1 images, such as val/images/val_9.JPEG"),
    ({"val/val_annotations.txt": ANNOTATIONS.replace(b"n02", b"n01")}, "names no image of the class n02"),
])
def test_files_that_do_not_fit_together_are_named(change, says, tmp_path):
    files = {name: content for name, content in (good() | change).items() if content is not None}
    with pytest.raises(DataError) as caught:
        load(unpack(files, tmp_path))
    assert says in str(caught.value) and "unpack tiny-imagenet-200.zip again" in str(caught.value)


def test_unreadable_images_are_named_counted_and_left_out_only_by_the_flag(tmp_path, capsys):
    whole = good()["val/images/val_3.JPEG"]
    root = unpack(good() | {"val/images/val_3.JPEG": whole[: len(whole) // 2], "train/n01/images/n01_2.JPEG": b"",
                            "train/n02/images/n02_0.JPEG": jpeg(2, size=32)}, tmp_path)
    with pytest.raises(DataError) as caught:
        load(root)
    said = str(caught.value)
    assert "3 of 20 images" in said and "n01_2.JPEG (it is no JPEG)" in said and "val/images/val_3.JPEG (" in said
    assert "n02_0.JPEG (it has 32x32 pixels, not 64x64)" in said and "--skip_unreadable" in said
    for _ in range(2):  # left-out images are not forgotten by keeping the others
        data = load(root, skip_unreadable=True)
        assert "3 of 20 images" in capsys.readouterr().out
        assert (len(data.train), len(data.test)) == (3 * TRAIN - 2, TEST - 1)
        assert torch.equal(data.train.images.float().mean((2, 3)).argmax(1), data.train.labels)


def test_an_encrypted_archive_and_one_that_unpacks_to_too_much_are_named(tmp_path, monkeypatch):
    content = bytearray(archive(good()))
    for header, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        for found in re.finditer(header, bytes(content)):
            content[found.start() + flags] |= 1
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"wnids.txt of .* cannot be read \(.* is encrypted, password required"):
        load(tmp_path)
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(archive(good() | {"val/images/val_3.JPEG": bytes(2000)}))
    monkeypatch.setattr(tinyimagenet, "FILE_LIMIT", 1999)
    with pytest.raises(DataError, match=r"1 of 20 images .*val_3.JPEG \(it unpacks to 2,000 bytes"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["tiny-imagenet-200", "tiny-imagenet-200.zip", "."])
def test_a_file_where_it_should_not_be_is_named(name, tmp_path):
    root = tmp_path / "data"
    if name == ".":
        root.touch()
    else:
        root.mkdir()
        (root / name).write_text("x")
    says = {"tiny-imagenet-200": "is a file where a folder should be", ".": "data is a file: give --data_dir a folder",
            "tiny-imagenet-200.zip": "cannot be read (File is not a zip file): remove it"}
    with pytest.raises(DataError, match=re.escape(says[name])):
        load(root)


def test_a_student_learns_from_it_with_the_teacher_cache(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/tiny-imagenet-200.zip").write_bytes(archive(good(classes=2, train=1)))
    (tmp_path / "resnet8_t").mkdir()
    torch.save(model_dict["resnet8"](num_classes=2).state_dict(), tmp_path / "resnet8_t/teacher.pth")
    run = scripts.succeed("train_student.py", "--path_t", tmp_path / "resnet8_t/teacher.pth",
                          "--dataset", "tinyimagenet", "--data_dir", tmp_path / "data", "--epochs", 1,
                          "--teacher_cache", "on", "--cache_dir", tmp_path / "cache", "--save_dir", tmp_path / "save")
    assert "decoding 10 images" in run.stdout and "logits of 324 views" in run.stdout
    assert "tinyimagenet, 2 training and 8 test images, 2 classes" in run.stdout
    cache = np.fromfile(scripts.only(tmp_path / "cache", "*/logits.bin"), dtype=np.float16)
    assert cache.shape == (324 * 2,) and np.isfinite(cache).all()
