"""Which source a run takes its teacher's outputs from, and how it opens it."""
import dataclasses
import re

import pytest
import torch

import dataset
from helper.evaluation import evaluate
from helper.teacher import plan as plan_module
from helper.teacher.plan import HEADROOM, CacheInputs, decide
from models.precision import FLOAT32, Precision
from tests.support.teacher_cache import BATCH, CPU, count_forwards, make_cache, make_data, make_teacher

pytestmark = pytest.mark.usefixtures("one_thread")

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


def test_a_teachers_accuracy_is_measured_once(tmp_path, monkeypatch):
    data, network = make_data(2), make_teacher()
    test, folder = data.test_images(CPU), str(tmp_path)
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
    plan_module.cached_teacher_accuracy(network, fewer, fewer.test_images(CPU), FLOAT32, folder)
    assert sizes == [16, 16, 16, 8]


def test_the_teacher_works_ahead_on_a_gpu_as_far_as_its_memory_goes():
    assert plan_module.fitting_batches(10**5, 64, 10**10) == 16
    assert plan_module.fitting_batches(327_680, 64, 10**9) == 4  # a tenth of the memory is 305 images
    assert plan_module.fitting_batches(327_680, 512, 10**9) == 1


def test_on_the_cpu_the_teacher_does_not_work_ahead():
    views = make_data(2).train_views(CPU)
    assert plan_module.batches_ahead(views, None, frozenset({"logits"}), 1) == 1
