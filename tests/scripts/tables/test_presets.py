"""The weights that a table gives its methods, and what of them is not published."""

import pytest

from helper.cli import student_options
from helper.record import published
from models import model_dict
from scripts.tables.presets import preset, remarks, weights


def test_weights_are_those_of_the_pair():
    assert weights("dkd", "resnet56->resnet20") == {
        "distill": "dkd", "gamma": 1, "alpha": 1, "kd_T": 4, "beta": 2, "ramp": 20}
    assert "ramp" not in weights("dkd+IKD", "resnet56->resnet20")  # IKD's code has none
    assert weights("dkd", "resnet32x4->ShuffleV2")["beta"] == 8
    assert weights("wttm", "wrn_40_2->wrn_16_2") == {"distill": "wttm", "gamma": 1, "alpha": 0.1, "beta": 4}
    assert weights("ce", "a->b") == {"distill": "kd", "gamma": 1, "alpha": 0}
    assert weights("crd+KD", "a->b") == {"distill": "crd", "gamma": 1, "alpha": 1, "beta": 0.8}
    assert weights("kd+ls+IKD", "a->b") == {"distill": "kd", "gamma": 0.1, "alpha": 9, "kd_T": 2, "logit_std": "on",
                                            "avg": 6.5, "intra_T": 1}
    assert weights("reviewkd", "resnet56->resnet20")["beta"] == 0.6
    assert weights("catkd", "resnet32x4->ShuffleV2") == {"distill": "catkd", "gamma": 1, "cat_norm": "on",
                                                         "cat_size": "4", "beta": 600}
    assert weights("wkd-lf", "wrn_40_2->ShuffleV1") == {"distill": "wkd", "gamma": 1, "wkd": "lf", "alpha": 60,
                                                        "wkd_T": 4, "beta": 0.5}


@pytest.mark.parametrize("pair, kd, dkd, mlkd", [  # temperature and weights
    ("resnet32x4->resnet8x4", (2, 9), (2, 9, 72), (2, 9)), ("resnet56->resnet20", (2, 9), (3, 18, 36), None),
    ("wrn_40_2->wrn_16_2", (2, 9), (2, 12, 24), (2, 9)), ("vgg13->vgg8", (3, 9), (2, 15, 30), (2, 6)),
    ("resnet32x4->ShuffleV2", (2, 9), (2, 9, 72), (2, 6)), ("resnet110->resnet20", (4, 12), (2, 15, 30), (2, 9))])
def test_weights_with_standardised_logits_are_those_of_the_published_logs(pair, kd, dkd, mlkd):
    for method, values, keys in (("kd", kd, ("kd_T", "alpha")), ("dkd", dkd, ("kd_T", "alpha", "beta")),
                                 ("mlkd", mlkd, ("mlkd_T", "beta"))):
        found, said = preset(f"{method}+ls", pair)
        assert (values is None) == bool(said)
        assert tuple(found[key] for key in keys) == (values or (2, 9)) and found["logit_std"] == "on"
        assert found["gamma"] == (1 if method == "dkd" else 0.1) and found.get("ramp", 0) == 20 * (method == "dkd")


@pytest.mark.parametrize("pair, flags, said", [
    ("resnet32x4->resnet8x4", "--distill dkd -b 8 --avg 6.5 --intra_T 1", []),
    ("resnet32x4->resnet8x4", "--distill kd -r 0.1 -a 0.9 --avg 6.5 --intra_T 1", ["IKD's avg 6.5 and intra_T 1 are"]),
    ("resnet32x4->resnet8x4", "--distill dkd -b 8 --avg 6.5 --intra_T 2", ["IKD's avg 6.5 and intra_T 2 are"]),
    ("resnet56->resnet20", "--distill dkd -b 2 --avg 6.5 --intra_T 1", ["IKD's avg 6.5 and intra_T 1 are"]),
    ("resnet56->resnet20", "--distill dkd -b 8 --ramp 20", ["not the preset: b 8 instead of 2"]),
    ("resnet56->resnet8", "--distill wttm", ["wttm's weights are published for other pairs"]),
    ("resnet56->resnet20", "--distill kdsvd", ["no weight of kdsvd is published"]),
    ("resnet56->resnet20", "--distill hint -a 1", ["the weight of the added KD is not published for this method"]),
    ("resnet56->resnet20", "--distill crd -a 1", []),
    ("resnet56->resnet20", "--distill kdsvd --dataset digits", [])])
def test_what_is_not_published_is_said(pair, flags, said):
    found = remarks(vars(student_options(["--path_t", "t", *flags.split()])), pair)
    assert len(found) == len(said) and all(text.startswith(part) for text, part in zip(found, said, strict=True))


def test_published_facts_hold_together():
    for pair, row in published.ACCURACY.items():
        assert set(pair.split("->")) <= set(model_dict) and {"teacher", "ce", "kd"} <= set(row)
        assert all(50 < top1 < 80 and source in published.SOURCES for top1, source in row.values())
        assert row["teacher"][0] == published.TEACHERS[pair.split("->")[0]]
        assert {published.SOURCES[source]["figure"] for _, source in row.values()} <= {"last", "best", "not stated"}
    for known in published.WEIGHTS.values():
        for row in known.values():
            networks = {network for pair in row.get("pairs", ()) for network in pair.split("->")}
            assert published.SOURCES[row["source"]]["what"]
            assert all(name in model_dict or name.startswith("torchvision:") for name in networks)
    for pair, row in published.LOGS.items():
        assert pair in published.ACCURACY and all(
            0 <= round(log["best"] - log["last"], 2) <= 0.92 for log in row.values())
    assert len(published.TEACHERS) == 6
    assert published.figure("cifar100", "resnet56->resnet20", "ctkd") == (71.19, "C", "best")
    assert published.figure("cifar100", "resnet32x4->ShuffleV2", "sdd-kd") == (76.665, "SC", "not stated")
    assert published.figure("digits", "resnet56->resnet20", "kd") is None
    assert published.figure("cifar100", "resnet56->resnet20", "kd") == (70.66, "R", "last")
    for table in published.TABLES.values():
        for pair in table["pairs"]:
            for spec in table["methods"]:
                assert weights(spec, pair)
