"""What several tests share."""
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading

import numpy as np
import pytest
import torch

from helper.util.files import lock_folder
from tests.support import scripts

# As in helper/record/run.py: the first test of a process that imports protobuf decides for all.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory):
    """The checkpoint of a resnet14 that train_teacher.py trained on the digits, well enough to teach."""
    own = tmp_path_factory.getbasetemp()
    save = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "teacher"  # one for all of pytest's processes
    save.mkdir(exist_ok=True)
    with lock_folder(str(save), waiting="another process trains the teacher"):
        scripts.succeed("train_teacher.py", "--model", "resnet14", "--dataset", "digits", "--epochs", 3,
                        "--lr_decay_epochs", "2", "--save_dir", save)
    return scripts.only(save / "models") / "resnet14_last.pth"


@pytest.fixture(scope="module")
def one_thread():
    """For tests whose sums must come in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cifar_server(tmp_path, monkeypatch):
    """A server of a small archive in CIFAR-100's format, which torchvision is made to fetch from."""
    from torchvision import datasets

    rng = np.random.default_rng(0)

    def batch(n):
        return {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "fine_labels": [i % 100 for i in range(n)],
                "coarse_labels": [(2 - i % 100) % 3 for i in range(n)]}

    files = {"train": pickle.dumps(batch(200)), "test": pickle.dumps(batch(100)),
             "meta": pickle.dumps({"fine_label_names": [f"name{i}" for i in range(100)],
                                   "coarse_label_names": [f"coarse{i}" for i in range(3)]})}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    site = tmp_path / "site"
    site.mkdir()
    (site / "cifar-100-python.tar.gz").write_bytes(archive.getvalue())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=site)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    official = datasets.CIFAR100
    monkeypatch.setattr(official, "url", f"http://127.0.0.1:{server.server_port}/cifar-100-python.tar.gz")
    monkeypatch.setattr(official, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    monkeypatch.setattr(official, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(official, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(official, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5["meta"]})
    yield site
    server.shutdown()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config, items):
    """The longest tests first, so that at the end no process is left alone with them, then those that need the digits'
    teacher, so that the processes do not wait for it at the same time; slow ones only if asked for."""
    first = ("test_distributed", "test_resume", "test_cache", "test_teacher_cache", "test_methods")
    items.sort(key=lambda item: (not any(name in item.nodeid for name in first),
                                 "digits_teacher" not in item.fixturenames))
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: runs with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
