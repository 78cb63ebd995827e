"""The exact teacher cache: what it holds, and how it survives."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset
from dataset.views import views_of
from distiller_zoo.kd import DistillKL
from helper.teacher import cache as cache_module
from helper.teacher.cache import checksums
from helper.teacher.source import CachedTeacher, LiveTeacher
from helper.util.errors import Interrupted, RunError, UsageError
from tests.support.teacher_cache import (
    BATCH,
    WIDTHS,
    build,
    count,
    count_forwards,
    fill,
    make_cache,
    make_data,
    make_teacher,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def start_build(root, n, slow=0.0):
    """`build` in a process of its own that pauses `slow` seconds before each batch and records each."""
    code = ("import sys, time, torch; torch.set_num_threads(1)\n"
            "from helper.teacher import cache; from tests.support import teacher_cache as t\n"
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


def test_an_interrupted_build_continues_where_it_was(tmp_path, monkeypatch):
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


def test_a_killed_build_continues_where_it_was(tmp_path, monkeypatch):
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


def test_a_full_disk_is_named_before_the_build(tmp_path, monkeypatch):
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
