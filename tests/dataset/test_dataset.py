"""Data and views: equal to torchvision's transforms, drawn as stated, fetched from where torchvision fetches."""
import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import dataset
from dataset import Data, DataError, Split, epoch_plan
from dataset.cifar100 import MEAN, STD

CPU = torch.device("cpu")


def random_data(n=6, size=32, flip=True):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(n))
    return Data("random", tuple("abcdef"), MEAN, STD, flip, split, split)


@pytest.mark.parametrize("size", [32, 64])
def test_all_162_views_equal_torchvisions_bit_for_bit(size):
    data = random_data(n=2, size=size)
    views = data.train_views(CPU)
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    for i, image in enumerate(data.train.images):
        padded = transforms.functional.pad(Image.fromarray(image.permute(1, 2, 0).numpy()), [4])
        for vertical in range(9):
            for horizontal in range(9):
                cut = transforms.functional.crop(padded, vertical, horizontal, size, size)
                for mirrored, shown in enumerate((cut, transforms.functional.hflip(cut))):
                    view = torch.tensor([(vertical * 9 + horizontal) * 2 + mirrored])
                    assert torch.equal(views.gather(torch.tensor([i]), view)[0], finish(shown))


def test_a_batch_of_many_views_equals_each_of_them_alone():
    views = random_data().train_views(CPU)
    index, view = torch.tensor([5, 0, 3, 3]), torch.tensor([0, 161, 80, 7])
    batch = views.batch(index, view)
    for i in range(4):
        assert torch.equal(batch.images[i], views.gather(index[i : i + 1], view[i : i + 1])[0])
    assert torch.equal(batch.labels, index)


def test_test_images_are_normalised_as_torchvision_does():
    data = random_data()
    images, labels = next(data.test_images(CPU).batches(4))
    expected = transforms.Normalize(MEAN, STD)(data.test.images[:4].float() / 255)
    assert torch.equal(images, expected) and torch.equal(labels, torch.arange(4))


def test_an_epoch_shows_every_sample_once_and_keeps_the_smaller_last_batch():
    views = random_data().train_views(CPU)
    batches = list(views.batches(epoch_plan(6, True, 0, "1", "train", 1), 4))
    assert [len(batch.labels) for batch in batches] == [4, 2]
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(6))


def test_the_plan_is_a_pure_function_of_seed_trial_phase_and_epoch():
    base = (0, "1", "train", 1)
    plan = epoch_plan(1000, True, *base)
    torch.manual_seed(7)
    assert all(torch.equal(a, b) for a, b in zip(plan, epoch_plan(1000, True, *base), strict=True))
    for other in [(1, "1", "train", 1), (0, "2", "train", 1), (0, "1", "first", 1), (0, "1", "train", 2)]:
        changed = epoch_plan(1000, True, *other)
        assert not torch.equal(plan[0], changed[0]) and not torch.equal(plan[1], changed[1])


def test_views_are_uniform_over_162_and_not_mirrored_without_flip():
    _, view = epoch_plan(162 * 500, True, 0, "1", "train", 1)
    counts = torch.bincount(view, minlength=162)
    # 500 expected in each; the chi-squared of 161 degrees of freedom exceeds 240 once in 10,000.
    assert len(counts) == 162 and ((counts - 500) ** 2 / 500).sum() < 240
    _, view = epoch_plan(1000, False, 0, "1", "train", 1)
    assert (view % 2 == 0).all()


def test_digits_are_stratified_fixed_and_disjoint():
    data = dataset.load("digits", "unused")
    assert len(data.train) == 1442 and len(data.test) == 355 and not data.flip
    assert data.train.images.shape[1:] == (3, 32, 32) and data.train.images.dtype == torch.uint8
    whole = torch.bincount(data.train.labels) + torch.bincount(data.test.labels)
    assert ((torch.bincount(data.test.labels) / whole - 0.2).abs() < 0.01).all()
    pixels = data.train.images.float() / 255
    assert pixels.mean() == pytest.approx(data.mean[0], abs=1e-4)
    assert pixels.std() == pytest.approx(data.std[0], abs=1e-4)


def test_missing_cifar100_is_fetched_and_checked(cifar_server, tmp_path):
    data = dataset.load("cifar100", str(tmp_path / "data"))
    assert len(data.train) == 200 and len(data.test) == 100 and data.classes[99] == "name99" and data.flip
    raw = pickle.loads((tmp_path / "data/cifar-100-python/train").read_bytes())
    assert torch.equal(data.train.images[3].flatten(), torch.from_numpy(raw["data"][3]))
    (cifar_server / "cifar-100-python.tar.gz").unlink()
    assert len(dataset.load("cifar100", str(tmp_path / "data")).train) == 200  # nothing more is fetched


@pytest.mark.parametrize("fault", ["absent", "garbage", "truncated"])
def test_what_cannot_be_fetched_says_what_to_put_where(cifar_server, tmp_path, fault):
    archive = cifar_server / "cifar-100-python.tar.gz"
    content = archive.read_bytes()
    archive.unlink()
    if fault != "absent":
        archive.write_bytes(b"<html>busy</html>" if fault == "garbage" else content[: len(content) // 2])
    with pytest.raises(DataError) as caught:
        dataset.load("cifar100", str(tmp_path / "data"))
    message = str(caught.value)
    assert "\n" not in message and "cannot be fetched" in message
    assert "put cifar-100-python.tar.gz or the folder cifar-100-python into" in message and "--data_dir" in message


def test_cifar10_is_read_as_torchvision_finds_it(tmp_path, monkeypatch):
    from torchvision import datasets

    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    pixels = [rng.integers(0, 256, (n, 3072), dtype=np.uint8) for n in (20, 10, 10)]
    listed = [write(name, {"data": x, "labels": [i % 10 for i in range(len(x))]})
              for name, x in zip(("data_batch_1", "data_batch_2", "test_batch"), pixels, strict=True)]
    name, md5 = write("batches.meta", {"label_names": [f"name{i}" for i in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", listed[:2])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", listed[2:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    data = dataset.load("cifar10", str(tmp_path))
    assert (data.name, len(data.train), len(data.test), data.classes[9]) == ("cifar10", 30, 10, "name9") and data.flip
    assert torch.equal(data.train.images[20].flatten(), torch.from_numpy(pixels[1][0]))
    assert data.train.labels[:20].tolist() == [*range(10), *range(10)] and data.image_shape == (3, 32, 32)


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"not writable.*--data_dir"):
        dataset.load("cifar100", str(tmp_path / "file" / "data"))
