"""The exact teacher cache: what it holds, how it survives, when it is used, and what training with it gives."""
import contextlib
import copy
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset
import train_student
from dataset.views import views_of
from distiller_zoo.ikd import IKD
from distiller_zoo.kd import DistillKL
from helper.evaluation import evaluate
from helper.record.run import RunRecord
from helper.teacher import cache as cache_module
from helper.teacher import plan as plan_module
from helper.teacher.cache import Cache, checksums
from helper.teacher.keys import key_of
from helper.teacher.plan import HEADROOM, CacheInputs, decide
from helper.teacher.source import CachedTeacher, LiveTeacher
from helper.util.errors import Interrupted, RunError, UsageError
from helper.util.seeding import derive_seed
from models import Outputs, model_dict
from models.precision import FLOAT32, Precision

CPU = torch.device("cpu")
WIDTHS = {"logits": 10, "pooled": 64}
BATCH = 16


def make_data(n=8, flip=False, n_test=16):
    """The first digits; also with mirroring, to see all 162 views."""
    data = dataset.load("digits", "")
    train, test = (dataset.Split(part.images[:k].clone(), part.labels[:k])
                   for part, k in ((data.train, n), (data.test, n_test)))
    return dataclasses.replace(data, train=train, test=test, flip=flip)


def make_teacher(seed=0):
    torch.manual_seed(seed)
    network = model_dict["resnet8"](num_classes=10)
    # Logits of a trained network's size, so that tolerances mean something.
    network.fc.weight.data *= 20
    return network.eval().requires_grad_(False)


def make_cache(root, network, data, dtype="float32"):
    return Cache(str(root), network, data, dtype, CPU, WIDTHS), dataset.TrainViews(data, CPU)


def build(root, n=8, fields=("logits",), dtype="float32"):
    """What a process of the tests does: build the cache of make_teacher() on make_data(n)."""
    network = make_teacher()
    cache, views = make_cache(root, network, make_data(n), dtype)
    fill(cache, list(fields), network, views)
    return cache


def fill(cache, fields, network, views, rows=None, stop=lambda: None):
    cache.prepare(fields, network, views, stop)
    cache.fill(fields, rows, network, views, BATCH, stop)


def count(cache, name="logits"):
    """How many rows are on the disk."""
    return int(np.count_nonzero(cache.have(name)))


def start_build(root, n, slow=0.0):
    """`build` in a process of its own that pauses `slow` seconds before each batch and records each."""
    code = ("import sys, time, torch; torch.set_num_threads(1)\n"
            "from helper.teacher import cache; from tests.helper.teacher import test_cache as t\n"
            "cache.SAVE_SECONDS, cache.BLOCK = 0, 2; write = cache.Cache._write\n"
            f"cache.Cache._write = lambda *a: (time.sleep({slow}), write(*a))[1]\n"
            f"t.build({str(root)!r}, {n})\n")
    return subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_rows(cache, rows, process):
    """Until that many rows are on the disk; returns how many there are."""
    deadline = time.monotonic() + 60
    while True:
        done = count(cache)
        if done >= rows:
            return done
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def count_forwards(network, monkeypatch):
    """A list that grows by the batch's size whenever the network runs."""
    sizes, outputs = [], network.outputs
    monkeypatch.setattr(network, "outputs", lambda x: (sizes.append(len(x)), outputs(x))[1])
    return sizes


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("flip", (False, True))
@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_cached_outputs_are_the_live_ones(flip, dtype, tmp_path):
    data, network = make_data(3, flip), make_teacher()
    cache, views = make_cache(tmp_path, network, data, dtype)
    fill(cache, ["logits", "pooled"], network, views)
    assert cache.shape == (3, 162 if flip else 81)
    cached = CachedTeacher({name: cache.table(name) for name in WIDTHS}, flip)
    live = LiveTeacher(network, frozenset(WIDTHS))
    index, view = torch.cartesian_prod(torch.arange(3), views_of(flip)).T
    for i in range(0, len(index) - BATCH + 1, 7):  # batches that no batch of the build was
        batch = views.batch(index[i : i + BATCH].flip(0), view[i : i + BATCH].flip(0))
        ours, theirs = cached(batch), live(batch)
        assert ours.stages == () and ours.stem is None
        for a, b in ((ours.logits, theirs.logits), (ours.pooled, theirs.pooled)):
            assert a.dtype == torch.float32
            if dtype == "float32":
                assert torch.equal(a, b)
            else:  # half a unit of the last of 11 bits, or of the smallest subnormal
                assert ((a - b).abs() <= b.abs() * 2**-11 + 2**-25).all() and not torch.equal(a, b)


def test_training_views_are_views_of_the_data():
    for flip in (False, True):
        _, view = dataset.epoch_plan(20_000, flip, 0, "1", "train", 1)
        assert torch.equal(view.unique(), views_of(flip))


def test_another_field_is_added_without_the_first(tmp_path):
    path = Path(build(tmp_path, 2).folder)
    before = os.stat(path / "logits.bin").st_mtime_ns
    cache = build(tmp_path, 2, ("logits", "pooled"))
    assert os.stat(path / "logits.bin").st_mtime_ns == before
    assert (count(cache, "logits"), count(cache, "pooled")) == (162, 162)


def test_interrupted_build_goes_on_where_it_was(tmp_path, monkeypatch):
    network, data = make_teacher(), make_data(2)
    cache, views = make_cache(tmp_path / "a", network, data)
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 5:
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        fill(cache, ["logits"], network, views, stop=stop)
    assert count(cache) == 4 * BATCH
    assert cache.left(["logits"]) == pytest.approx(1 - 4 * BATCH / 162)
    sizes = count_forwards(network, monkeypatch)
    cache.fill(["logits"], None, network, views, BATCH, lambda: None)
    assert sizes == [BATCH] * 7  # 98 rows are left; the last batch is filled up to be a full one
    assert torch.equal(cache.table("logits"), build(tmp_path / "b", 2).table("logits"))


def test_killed_build_goes_on_where_it_was(tmp_path, monkeypatch):
    network, data = make_teacher(), make_data(8)
    cache, views = make_cache(tmp_path / "a", network, data)
    process = start_build(tmp_path / "a", 8, slow=0.05)
    wait_for_rows(cache, 6 * BATCH, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = count(cache)
    assert 6 * BATCH <= done < cache.rows
    sizes = count_forwards(network, monkeypatch)
    cache.fill(["logits"], None, network, views, BATCH, lambda: None)
    assert sum(sizes) < cache.rows - done + BATCH
    assert torch.equal(cache.table("logits"), build(tmp_path / "b", 8).table("logits"))


def test_two_processes_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "BLOCK", 2)
    network, data = make_teacher(), make_data(8)
    cache, views = make_cache(tmp_path / "a", network, data)
    first = start_build(tmp_path / "a", 8, slow=0.1)
    wait_for_rows(cache, BATCH, first)
    sizes, seen = count_forwards(network, monkeypatch), count(cache)
    fill(cache, ["logits"], network, views)
    # 64 rows to compare what was there; then not the block of 162 rows that the first process was at, and which it
    # waited for.
    assert cache.left(["logits"]) == 0 and seen < 162 and 0 < sum(sizes) - 64 <= 3 * 176
    assert first.communicate(timeout=60) and first.returncode == 0
    assert torch.equal(cache.table("logits"), build(tmp_path / "b", 8).table("logits"))


def test_it_grows_by_the_rows_that_are_asked_for(tmp_path, monkeypatch):
    network, data = make_teacher(), make_data(4)
    cache, views = make_cache(tmp_path / "a", network, data)
    table, sizes = None, count_forwards(network, monkeypatch)
    cache.prepare(["logits"], network, views, lambda: None)
    table, whole = cache.table("logits").flatten(0, 1), build(tmp_path / "b", 4).table("logits").flatten(0, 1)
    sizes.clear()
    for rows, forwards in ([3, 80, 200], 1), ([3, 81, 200, 300], 1), ([80, 300], 0), (range(40), 3):
        cache.fill(["logits"], np.array(rows), network, views, BATCH, lambda: None)
        assert torch.equal(table[list(rows)], whole[list(rows)])  # seen through the mapping that was there before
        assert sizes == [BATCH] * forwards
        sizes.clear()
    assert count(cache) == 4 + 40
    assert not table[100:200].any()


def damage_meta(folder):
    (folder / "meta.json").write_text("{")


def damage_key(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"key": "0" * 64}))


def damage_marks(folder):
    os.truncate(folder / "logits.sums", 10)


def damage_size(folder):
    os.truncate(folder / "logits.bin", 100)


def remove_values(folder):
    (folder / "logits.bin").unlink()


def remove_meta(folder):
    """What a kill left behind while an earlier version discarded a cache, the values zeroed: the marks are nobody's."""
    (folder / "meta.json").unlink()
    (folder / "logits.bin").write_bytes(bytes((folder / "logits.bin").stat().st_size))


@pytest.mark.parametrize("damage", (damage_meta, damage_key, damage_marks, damage_size, remove_values, remove_meta))
def test_damaged_cache_is_built_afresh(damage, tmp_path, capsys):
    cache = build(tmp_path, 2)
    right = cache.table("logits").clone()
    damage(Path(cache.folder))
    capsys.readouterr()
    build(tmp_path, 2)
    output = capsys.readouterr().out
    assert "cannot be used" in output and cache.left(["logits"]) == 0
    assert torch.equal(cache.table("logits"), right)


@pytest.mark.parametrize("rows", [[7], [0, 161], list(range(81, 162))])
def test_rows_that_do_not_have_their_checksum_are_computed_anew(rows, tmp_path, capsys, monkeypatch):
    """One flipped bit is enough, and half a cache of zeros is noticed; no other row is computed."""
    cache = build(tmp_path, 2)
    right, width = cache.table("logits").clone(), cache.dtype.itemsize * WIDTHS["logits"]
    with open(Path(cache.folder) / "logits.bin", "r+b") as file:
        for row in rows:
            file.seek(row * width + 3)
            byte = file.read(1)[0]
            file.seek(row * width + 3)
            file.write(bytes([byte ^ 1] if len(rows) < 3 else [0]))
    network = make_teacher()
    cache, views = make_cache(tmp_path, network, make_data(2))
    sizes = count_forwards(network, monkeypatch)
    cache.prepare(["logits"], network, views, lambda: None)
    probed = sum(sizes)
    cache.fill(["logits"], None, network, views, BATCH, lambda: None)
    assert sum(sizes) - probed == -(-len(rows) // BATCH) * BATCH
    assert f"{len(rows)} rows of logits.bin do not have their checksum" in capsys.readouterr().out
    assert torch.equal(cache.table("logits"), right)


def test_checksums_differ_for_any_changed_word():
    rows = np.random.default_rng(0).integers(0, 2**16, (50, 100), dtype=np.uint16)
    sums = checksums(rows)
    for word in range(100):
        changed = rows.copy()
        changed[:, word] ^= np.uint16(1 << (word % 16))
        assert (checksums(changed) != sums).all()
    assert (sums != 0).all() and checksums(np.zeros((1, 100), np.uint16))[0] != 0


@contextlib.contextmanager
def read_only(folder):
    """Nothing in `folder` can be written, by root neither."""
    if os.geteuid() != 0:
        os.chmod(folder, 0o500)
    elif subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode != 0:
        pytest.skip("root may not mount here")
    else:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True, capture_output=True)
    try:
        yield
    finally:
        if os.geteuid() != 0:
            os.chmod(folder, 0o700)
        else:
            subprocess.run(["umount", folder], check=True)


def test_a_complete_cache_is_used_where_it_cannot_be_written_and_another_is_not(runs, capsys):
    folder = str(runs.root / "shared")
    state, _, _ = runs("built", "--teacher_cache", folder, epochs=1)
    with read_only(folder):
        again, _, args = runs("read", "--teacher_cache", folder, epochs=1)
        assert args["facts"]["cache"].startswith("complete (")
        assert all(torch.equal(again[key], value) for key, value in state.items())
        grown = ("--teacher_cache", "auto", "--cache_dir", folder, "--cache_dtype", "float32")
        _, _, args = runs("other", *grown, epochs=1)
        assert "is not complete and cannot be written" in args["facts"]["cache"]
        with pytest.raises(UsageError, match=r"cannot write to .* --cache_dir"):
            runs("refused2", "--teacher_cache", folder, "--cache_dtype", "float32")


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


def test_full_disk_is_told_before_the_build(tmp_path, monkeypatch):
    usage = cache_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r"needs 0\.01 MB more .* 0\.00 MB are free: .*--cache_dir"):
        build(tmp_path, 2)


def test_values_beyond_float16_are_refused(tmp_path):
    network = make_teacher()
    network.fc.weight.data *= 1e5
    cache, views = make_cache(tmp_path, network, make_data(2), "float16")
    with pytest.raises(RunError, match="--cache_dtype float32"):
        fill(cache, ["logits"], network, views)
    assert cache.left(["logits"]) == 1


def test_float16_logits_change_kds_gradient_by_less_than_a_thousandth():
    torch.manual_seed(0)
    student = torch.randn(64, 100)
    teacher = 3 * torch.randn(64, 100)

    def gradient(logits):
        z = student.clone().requires_grad_()
        DistillKL(4.0)(z, logits).backward()
        return z.grad

    exact = gradient(teacher)
    assert (gradient(teacher.half().float()) - exact).norm() < 1e-3 * exact.norm()
    # What bfloat16 would do, and why it is not offered.
    assert (gradient(teacher.bfloat16().float()) - exact).norm() > 2e-3 * exact.norm()


def test_class_sums_are_over_all_views(tmp_path):
    data = make_data(6)
    labels = torch.tensor([0, 3, 3, 9, 0, 3])
    cache = build(tmp_path, 6)
    sums, counts = CachedTeacher({"logits": cache.table("logits")}, data.flip).class_sums(labels, 10)
    expected = torch.zeros(10, 10, dtype=torch.float64)
    for image, label in enumerate(labels):
        expected[label] += cache.table("logits")[image].double().sum(0)
    torch.testing.assert_close(sums, expected)
    assert counts.tolist() == [162, 0, 0, 243, 0, 0, 0, 0, 0, 81]

    ikd = IKD(10, 2.0, 1.0)
    ikd.fix_means(sums, counts)
    batch = dataset.Batch(None, labels, None, None)
    ikd.start_epoch(1, None)
    # Whatever the first epoch shows does not matter, and the term is silent in it, as published.
    assert ikd(Outputs(logits=torch.randn(6, 10)), Outputs(logits=torch.full((6, 10), 1e6)), batch) == 0
    ikd.end_epoch(1)
    torch.testing.assert_close(ikd.means[3], (expected[3] / 243).float())
    ikd.start_epoch(2, None)
    assert ikd(Outputs(logits=torch.randn(6, 10)), Outputs(), batch) > 0


GB = 10**9
BASE = CacheInputs(asked="auto", reads=frozenset({"logits"}), earlier=None, left=1.0, epochs=240, views=162,
                 disk_needed=2 * GB, disk_free=9 * GB, table=2 * GB, device_free=80 * GB)
ON_CPU = {"device_free": None}


@pytest.mark.parametrize(("change", "source", "why"), (
    ({}, "complete", "estimated to be faster: building takes 162 passes .* at 2,000 images/s, .* 240 at 1,000"),
    ({"epochs": 81}, "live", "building takes 162 .* 81 at"),
    ({"epochs": 82}, "complete", "estimated to be faster"),
    ({"epochs": 30, "left": 0.25}, "complete", "estimated to be faster"),
    ({"views": 81, "epochs": 40}, "live", "building takes 81 .* 40 at"),
    ({"epochs": 1, "left": 0.0, "disk_needed": 0, "disk_free": 0}, "complete", "complete"),
    ({"disk_free": GB}, "live", "needs 2.00 GB more on the disk, 1.00 GB"),
    ({"device_free": 2 * GB + HEADROOM}, "complete", "estimated to be faster"),
    ({"device_free": 2 * GB + HEADROOM - 1}, "live", "the device has"),
    ({"device_free": GB, "left": 0.0}, "live", "the device has"),
    ({"device_free": GB, "asked": "on"}, "complete", "asked for"),
    ({"asked": "on", "epochs": 1}, "complete", "asked for"),
    ({"asked": "on", "reads": frozenset({"logits", "stages"})}, "live", "stages are read"),
    ({"reads": frozenset({"stem", "stages"}), "left": 0.0}, "live", "stages, stem are read"),
    ({"reads": frozenset({"logits", "pooled"})}, "complete", "estimated to be faster"),
    ({"reads": frozenset()}, "live", "nothing of the teacher"),
    ({"earlier": "live", "left": 0.0}, "live", "as this run began"),
    ({"earlier": "cache", "epochs": 1}, "complete", "as this run began"),
    ({"epochs": 1} | ON_CPU, "grow", r"grows by .* \(0% of all are there\)"),
    ({"epochs": 1, "left": 0.25} | ON_CPU, "grow", r"\(75% of all are there\)"),
    ({"left": 0.0} | ON_CPU, "complete", "complete"),
    ({"disk_free": GB} | ON_CPU, "live", "on the disk"),
    ({"earlier": "live"} | ON_CPU, "live", "as this run began"),
    ({"earlier": "cache"} | ON_CPU, "grow", "grows"),
    ({"asked": "on"} | ON_CPU, "complete", "asked for"),
))
def test_decision(change, source, why):
    found, reason = decide(BASE._replace(**change), lambda: (1000.0, 2000.0))
    assert found == source and re.search(why, reason)


@pytest.mark.parametrize(("change", "speeds"), (({}, (1000.0, 600.0)), ({"epochs": 90}, (1000.0, 1000.0))))
def test_a_teacher_that_is_no_faster_in_the_build_is_used_live(change, speeds):
    assert decide(BASE._replace(**change), lambda: speeds)[0] == "live"


@pytest.mark.parametrize("change", ({"left": 0.0}, {"asked": "on"}, {"earlier": "cache"}, {"earlier": "live"}, ON_CPU))
def test_the_teacher_is_timed_only_where_that_decides(change):
    decide(BASE._replace(**change), speeds=None)


def test_a_build_that_runs_out_of_memory_halves_its_batches(tmp_path, monkeypatch):
    """And keeps no feature maps: what does not fit is found where the device says so."""
    network, data = make_teacher(), make_data(3)
    whole, views = make_cache(tmp_path / "whole", network, data, "float32")
    fill(whole, ["logits"], network, views)
    sizes, outputs = [], network.outputs

    def limited(images):
        sizes.append(len(images))
        if len(images) > BATCH // 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return outputs(images)

    monkeypatch.setattr(network, "outputs", limited)
    cache, _ = make_cache(tmp_path / "halved", network, data, "float32")
    fill(cache, ["logits"], network, views)
    assert sizes[0] == BATCH and set(sizes[1:]) == {BATCH // 2}
    torch.testing.assert_close(cache.table("logits"), whole.table("logits"))


def test_the_builds_batch_follows_the_images_size():
    cuda = torch.device("cuda")
    data = make_data(2)
    large = dataclasses.replace(data, train=dataset.Split(torch.zeros(1, 3, 64, 64), torch.zeros(1)))
    assert [plan_module.build_batch(x, cuda, 64) for x in (data, large)] == [4096, 1024]
    assert plan_module.build_batch(large, CPU, 64) == 64


def test_table_goes_to_the_device_where_it_fits(tmp_path, monkeypatch, capsys):
    network, data = make_teacher(), make_data(2)
    cache, views = make_cache(tmp_path, network, data)
    plan = plan_module.TeacherPlan(network, frozenset({"logits"}), "complete", cache, {}, BATCH)
    batch = views.batch(torch.arange(2), torch.tensor([4, 160]))
    for free, stays in ((HEADROOM + cache.bytes("logits") - 1, True), (HEADROOM + cache.bytes("logits"), False)):
        monkeypatch.setattr(plan_module, "free_memory", lambda device, free=free: free)
        outputs = plan.open(views, lambda: None)(batch)
        assert ("stays on the host" in capsys.readouterr().out) == stays
        assert torch.equal(outputs.logits, cache.table("logits")[[0, 1], [2, 80]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """conduct(trial, flags) -> (weights at the end, log lines, args.json) of train_student.py on 40 digits."""
    root = tmp_path_factory.mktemp("runs")
    data = make_data(40)
    torch.save({"model": make_teacher().state_dict(), "model_name": "resnet8", "num_classes": 10}, root / "teacher.pth")

    def conduct(trial, *flags, epochs=8):
        argv = ["train_student.py", "--path_t", str(root / "teacher.pth"), "--dataset", "digits", "--batch_size", "20",
                "--epochs", str(epochs), "--learning_rate", "0.005", "--wram_up", "0", "--avg", "2", "--seed", "3",
                "--trial", trial, "--save_dir", str(root), "--device", "cpu", *flags]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(dataset.LOADERS, "digits", lambda folder: data)
            patch.setattr(sys, "argv", argv)
            handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            # The trial names the folder; the streams are to be those of one trial.
            for module in ("helper.build", "helper.step", "dataset.views"):
                patch.setattr(sys.modules[module], "derive_seed",
                              lambda seed, trial, *purpose: derive_seed(seed, "1", *purpose))
            try:
                train_student.main()
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        folder, = (root / "student_model").glob(f"*_{trial}")
        state = torch.load(folder / "resnet8_last.pth", weights_only=True)["model"]
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return state, lines, json.loads((folder / "args.json").read_text())

    conduct.root = root
    return conduct


def losses(lines):
    return torch.tensor([[line["loss"], *line["losses"].values(), line["test_loss"]] for line in lines])


@pytest.fixture(scope="module")
def live(runs):
    return runs("live")


def test_run_with_float32_cache_is_bit_equal(runs, live, capsys):
    state, lines, args = runs("float32", "--teacher_cache", str(runs.root / "cache"), "--cache_dtype", "float32")
    assert "asked for (float32" in args["facts"]["cache"] and args["decisions"]["teacher_source"] == "cache"
    assert "logits of 3,240 views" in capsys.readouterr().out
    assert all(torch.equal(state[key], live[0][key]) for key in state)
    assert torch.equal(losses(lines), losses(live[1]))


def test_run_with_float16_cache_stays_near(runs, live):
    """Over the trajectory: every epoch's losses within 1%, the weights and statistics at its end within 1% of
    their norm. Training amplifies any rounding: what one step sees is less than a thousandth (see above)."""
    state, lines, _ = runs("float16", "--teacher_cache", str(runs.root / "cache"))
    assert not torch.equal(losses(lines), losses(live[1]))
    torch.testing.assert_close(losses(lines), losses(live[1]), rtol=0.01, atol=0)
    ours, theirs = (torch.cat([value.float().flatten() for value in s.values()]) for s in (state, live[0]))
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_run_with_means_over_all_views(runs, live):
    _, lines, _ = runs("all", "--teacher_cache", str(runs.root / "cache"), "--ikd_means", "all")
    assert [line["losses"]["ikd"] > 0 for line in lines] == [False] + 7 * [True]
    # The first epoch has no IKD, so only from the second on do the means tell.
    torch.testing.assert_close(losses(lines[:1]), losses(live[1][:1]), rtol=1e-3, atol=0)
    assert abs(lines[1]["losses"]["ikd"] / live[1][1]["losses"]["ikd"] - 1) > 1e-3


def test_means_over_all_views_need_the_cache(runs, capsys):
    with pytest.raises(UsageError, match=r"--ikd_means all .* give --teacher_cache on"):
        runs("refused", "--ikd_means", "all")
    runs("without", "--ikd_means", "all", "--avg", "0", epochs=1)
    assert "--ikd_means has no effect without the IKD term" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_run_with_a_growing_cache(dtype, runs, live):
    """In float32 the very bits of the live teacher; a second run computes nothing anew, and ends alike."""
    flags = ("--teacher_cache", "auto", "--cache_dtype", dtype, "--cache_dir", str(runs.root / f"grows{dtype}"))
    state, lines, args = runs(f"grows{dtype}", *flags)
    assert "grows by the views that each epoch shows (0%" in args["facts"]["cache"]
    assert torch.equal(losses(lines), losses(live[1])) == (dtype == "float32")
    if dtype == "float32":
        assert all(torch.equal(state[key], live[0][key]) for key in state)
    again, _, args = runs(f"again{dtype}", *flags)
    assert re.search(r"shows \([1-9]\d?% of all", args["facts"]["cache"])
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_auto_uses_what_is_there_but_a_run_keeps_its_choice(runs, monkeypatch):
    elsewhere = str(runs.root / "elsewhere")
    end_epoch = RunRecord.end_epoch

    def end_then_stop(run, *args):
        end_epoch(run, *args)
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "end_epoch", end_then_stop)
        # No room for a cache: the live teacher teaches.
        usage = cache_module.shutil.disk_usage(runs.root)
        patch.setattr(cache_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(Interrupted):
            runs("kept", "--teacher_cache", "auto", "--cache_dir", elsewhere)
    there = str(runs.root / "cache")
    runs("there", "--teacher_cache", there)
    # Another --cache_dir is no other run; the cache there is complete, yet the run began without one.
    _, lines, args = runs("kept", "--teacher_cache", "auto", "--cache_dir", there)
    assert len(lines) == 8 and "as this run began (live)" in args["facts"]["cache"]
    _, _, args = runs("new", "--teacher_cache", "auto", "--cache_dir", there)
    assert args["facts"]["cache"].startswith("complete (float16, ")


def test_a_teachers_accuracy_is_measured_once(tmp_path, monkeypatch):
    data, network = make_data(2), make_teacher()
    test, folder = dataset.EvalImages(data, CPU), str(tmp_path)
    sizes = count_forwards(network, monkeypatch)
    first = plan_module.cached_teacher_accuracy(network, data, test, FLOAT32, folder)
    assert sizes == [16] and first == evaluate(network, test)
    sizes.clear()
    assert plan_module.cached_teacher_accuracy(network, data, test, FLOAT32, folder) == first and sizes == []
    # Another precision, damage, other weights, other images: measured anew.
    plan_module.cached_teacher_accuracy(network, data, test, Precision(channels_last=True), folder)
    for path in (tmp_path / "accuracy").iterdir():
        path.write_text('{"loss": 1')
    assert plan_module.cached_teacher_accuracy(network, data, test, FLOAT32, folder) == first
    network.fc.bias.data += 1
    plan_module.cached_teacher_accuracy(network, data, test, FLOAT32, folder)
    fewer = make_data(2, n_test=8)
    plan_module.cached_teacher_accuracy(network, fewer, dataset.EvalImages(fewer, CPU), FLOAT32, folder)
    assert sizes == [16, 16, 16, 8]


def test_the_teacher_works_ahead_on_a_gpu_as_far_as_its_memory_goes():
    assert plan_module.fitting_batches(10**5, 64, 10**10) == 16
    assert plan_module.fitting_batches(327_680, 64, 10**9) == 4  # a tenth of the memory is 305 images
    assert plan_module.fitting_batches(327_680, 512, 10**9) == 1


def test_on_the_cpu_the_teacher_does_not_work_ahead():
    views = make_data(2).train_views(CPU)
    assert plan_module.batches_ahead(views, None, frozenset({"logits"}), 1) == 1
