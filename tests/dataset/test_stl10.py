"""STL-10 as torchvision reads it, from a small copy in its format."""
import hashlib

import numpy as np
import pytest
import torch
from torchvision import datasets

import dataset
from dataset import DataError

NAMES = [f"name{i}" for i in range(10)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    files = {f"{part}_X.bin": rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8).tobytes()
             for part, n in (("train", 20), ("test", 10), ("unlabeled", 1))}
    files |= {f"{part}_y.bin": (np.arange(n, dtype=np.uint8) % 10 + 1).tobytes()
              for part, n in (("train", 20), ("test", 10))}
    files |= {"class_names.txt": "\n".join(NAMES).encode(), "fold_indices.txt": b""}
    (tmp_path / "stl10_binary").mkdir()
    for name, content in files.items():
        (tmp_path / "stl10_binary" / name).write_bytes(content)
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(datasets.STL10, attribute, [
            [name, hashlib.md5(files[name]).hexdigest()] for name, _ in getattr(datasets.STL10, attribute)])
    return tmp_path


def test_its_images_and_labels_are_those_of_the_files(folder):
    data = dataset.load("stl10", str(folder))
    assert (data.name, data.classes, data.image_shape, data.countable) == ("stl10", tuple(NAMES), (3, 96, 96), True)
    assert data.train.labels.tolist() == [*range(10), *range(10)] and data.test.labels.dtype == torch.int64
    stored = np.frombuffer((folder / "stl10_binary" / "test_X.bin").read_bytes(), np.uint8).reshape(10, 3, 96, 96)
    # The files hold columns first.
    assert np.array_equal(data.test.images.numpy(), stored.transpose(0, 1, 3, 2))


def test_a_damaged_file_without_its_archive_is_fetched_again_or_named(folder, monkeypatch):
    (folder / "stl10_binary" / "test_y.bin").write_bytes(b"\x01")
    monkeypatch.setattr(datasets.STL10, "url", "http://127.0.0.1:1/stl10_binary.tar.gz")
    with pytest.raises(DataError, match=r"STL-10 is not in .* and cannot be fetched .*put stl10_binary\.tar\.gz"):
        dataset.load("stl10", str(folder))
