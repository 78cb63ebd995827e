"""Every method as a term of a run's loss: its weight, its parts, its state, its first stage, its refusals."""
import math

import pytest
import torch

from dataset import Batch
from distiller_zoo import METHODS, MethodError, Setup
from helper import cli
from helper.objective import Objective, student_objective
from helper.teacher.source import LiveTeacher
from models import model_dict
from models.precision import FLOAT32
from tests.support import scripts

CLASSES, SAMPLES = 10, 60
# What each method trains beside the student, by the first part of its parameters' names.
TRAINED = {"hint": {"regressor"}, "correlation": {"embed_s", "embed_t"}, "vid": {"losses"}, "crd": {"loss"},
           "factor": {"translator"}, "wkd": {"projector"}, "ctkd": {"loss"}, "reviewkd": {"fusions"},
           "norm": {"expand"}}
EVERYTHING = frozenset({"logits", "pooled", "stages", "preacts", "stem", "cam", "strong"})
STAGED = {"factor": "paraphraser", "abound": "boundaries", "fsp": "flows"}


def options(method, *flags):
    small = {"crd": ["--nce_k", "32"], "crld": ["--crld_weak", "0"], "wkd": ["--wkd", "lf"]}.get(method, [])
    return cli.student_options(["--path_t", "t", "--distill", method, *small, *flags])


def networks(student="resnet8", teacher="resnet14"):
    torch.manual_seed(0)
    return (model_dict[name](num_classes=CLASSES) for name in (student, teacher))


def setup_of(student, teacher):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = [network.eval()(images, named=True, cam=True) for network in (student, teacher)]
    return Setup(*outputs, student.name, teacher.name, torch.arange(SAMPLES) % CLASSES, CLASSES,
                 teacher.classifier_layer().weight.detach(), lambda name, compute: 1 - torch.eye(CLASSES))


@pytest.fixture(scope="module")
def pair():
    """A student, a teacher, their set-up, a batch and both networks' outputs for it."""
    student, teacher = networks()
    index = torch.randperm(SAMPLES)[:12]
    batch = Batch(torch.randn(12, 3, 32, 32), index % CLASSES, index, None, strong=torch.randn(12, 3, 32, 32))
    setup = setup_of(student, teacher)
    out_s = FLOAT32.outputs(student.train(), batch.images, EVERYTHING, batch.strong)
    return student, teacher, setup, batch, out_s, LiveTeacher(teacher, EVERYTHING)(batch)


def build(name, pair, *flags):
    torch.manual_seed(1)
    return METHODS[name](pair[2], options(name, *flags))


def term_of(name, pair, *flags):
    """The term that bears the method's own loss: its first stage's where it has no other."""
    method = build(name, pair, *flags)
    term = method if method.in_main else method.stage(pair[0]).term
    term.train()
    term.start_epoch(2, torch.Generator().manual_seed(0))
    return term


def value(term, pair):
    *_, batch, out_s, out_t = pair
    return term(out_s, out_t, batch)


def test_all_seventeen_of_the_published_code_are_there_and_later_ones():
    published = {name for name, method in METHODS.items() if method.in_published_code}
    assert published == {"kd", "dkd", "nkd", "wttm", "hint", "attention", "nst", "similarity", "rkd", "pkt",
                         "correlation", "vid", "kdsvd", "crd", "factor", "abound", "fsp"}
    assert set(METHODS) - published == {"catkd", "crld", "ctkd", "dist", "ldrld", "mlkd", "norm", "reviewkd", "rld",
                                       "sdd", "wkd"}


@pytest.mark.parametrize("name", METHODS)
def test_it_reads_what_it_says_of_the_teacher_and_no_more(name, pair):
    *_, batch, out_s, out_t = pair
    term = term_of(name, pair)
    everything = value(term, pair)
    term.start_epoch(2, torch.Generator().manual_seed(0))
    if name == "crd":  # its banks have moved
        term = term_of(name, pair)
    only = term(out_s, type(out_t)(**{field: getattr(out_t, field) for field in term.reads}), batch)
    assert torch.equal(everything, only) and everything.isfinite() and everything.shape == ()


@pytest.mark.parametrize("name", METHODS)
def test_its_weight_acts(name, pair):
    flag = "-a" if METHODS[name].beta is None else "-b"
    one, two, three = (value(term_of(name, pair, flag, weight), pair).item() for weight in ("1", "2", "3"))
    assert three - two == pytest.approx(two - one, rel=1e-3) and two != one
    if name not in ("nkd", "dkd", "rld", "ldrld", "sdd", "crld", "wkd"):  # these have a part that b does not weight
        assert two == pytest.approx(2 * one, rel=1e-4)


@pytest.mark.parametrize("name", ["dkd", "wttm"])
def test_a_acts_in_its_own_way_where_the_method_has_its_own(name, pair):
    one, two = (value(term_of(name, pair, "-a", a), pair) for a in ("0.5", "0.7"))
    assert one != two


@pytest.mark.parametrize("name", METHODS)
def test_kd_and_ikd_add_up_with_it(name, pair):
    _, _, setup, batch, out_s, out_t = pair
    chosen = options(name, "-r", "0.5", "--avg", "2")
    if METHODS[name].alpha_adds_kd and METHODS[name].alpha is not None:
        chosen = options(name, "-r", "0.5", "--avg", "2", "-a", "0.9")
    torch.manual_seed(1)
    objective = student_objective(METHODS[name](setup, chosen), setup, chosen)
    expected = {"ce", name, "ikd"} if METHODS[name].in_main else {"ce", "ikd"}
    if METHODS[name].alpha_adds_kd and METHODS[name].alpha is not None:
        expected |= {"kd"}
    objective.start_epoch(1, torch.Generator())
    losses = objective(out_s, out_t, batch)
    assert set(losses) == expected and losses["ikd"] == 0
    objective.end_epoch(1)
    objective.start_epoch(2, torch.Generator())
    assert objective(out_s, out_t, batch)["ikd"] > 0
    assert losses["ce"].item() == pytest.approx(
        0.5 * sum(torch.nn.functional.cross_entropy(z, batch.labels).item()
                  for z in (out_s.logits, *([out_s.strong] if "strong" in objective.reads else []))))


@pytest.mark.parametrize("name", METHODS)
def test_its_trainable_parts_get_gradients_and_its_frozen_ones_none(name, pair):
    student, _, setup, batch, _, out_t = pair
    chosen = options(name)
    torch.manual_seed(1)
    objective = student_objective(METHODS[name](setup, chosen), setup, chosen)
    objective.train()
    objective.start_epoch(1, torch.Generator())
    trained = {key.split(".", 2)[2].split(".")[0] for key, p in objective.named_parameters() if p.requires_grad}
    assert trained == TRAINED.get(name, set())
    student.zero_grad()
    sum(objective(FLOAT32.outputs(student, batch.images, EVERYTHING, batch.strong), out_t, batch).values()).backward()
    for key, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert not any(buffer.requires_grad for buffer in objective.buffers())


@pytest.mark.parametrize("name", METHODS)
def test_nothing_of_it_enters_the_students_state(name, pair):
    student, before = pair[0], set(pair[0].state_dict())
    build(name, pair).stage(student)
    assert set(student.state_dict()) == before


@pytest.mark.parametrize("name", METHODS)
def test_its_state_continues_from_a_state_dict(name, pair):
    term = term_of(name, pair)
    value(term, pair)
    torch.manual_seed(2)
    other = METHODS[name](pair[2], options(name))
    again = other if other.in_main else other.stage(pair[0]).term
    again.load_state_dict(term.state_dict())
    for each in (term, again):
        each.train()
        each.start_epoch(3, torch.Generator().manual_seed(3))
    assert torch.equal(value(term, pair), value(again, pair))


@pytest.mark.parametrize("name", STAGED)
def test_a_first_stage_trains_its_modules_and_the_features_it_says(name, pair):
    student, _, _, batch, out_s, out_t = pair
    stage = build(name, pair).stage(student)
    assert stage.name == STAGED[name]
    assert not any(p.requires_grad for module in stage.modules for p in module.parameters())
    for module in stage.modules:
        module.requires_grad_(True)
    student.zero_grad()
    stage.term(out_s if stage.term.reads_student else None, out_t, batch).backward(retain_graph=True)
    assert all(p.grad is not None for module in stage.modules for p in module.parameters())
    head = [p.grad for p in student.fc.parameters()]
    features = [p.grad for p in student.feature_parameters() if p.grad is not None]
    assert head == [None, None]
    assert bool(features) == stage.trains_features


@pytest.mark.parametrize("student, rate", [("resnet8", 0.01), ("wrn_16_1", 0.01), ("vgg8", 0.05)])
def test_the_paraphrasers_learning_rate_is_the_benchmarks(student, rate, pair):
    assert build("factor", pair).stage(pair[0]).learning_rate(student, 0.05) == rate


@pytest.mark.parametrize("name, student, teacher, flags", [
    ("kdsvd", "resnet8", "resnet8x4", []), ("fsp", "resnet8", "resnet8x4", []),
    *[(name, "resnet8", "vgg8", []) for name in ("attention", "nst", "vid", "abound", "fsp", "kdsvd", "reviewkd")],
    ("hint", "resnet8", "resnet14", ["--hint_layer", "4"]),
    ("hint", "MobileNetV2", "wrn_16_1", ["--hint_layer", "4"]),
])
def test_a_pair_that_it_cannot_serve_is_refused_with_both_networks_named(name, student, teacher, flags):
    with pytest.raises(MethodError) as refused:
        METHODS[name](setup_of(*networks(student, teacher)), options(name, *flags))
    message = str(refused.value)
    assert student in message and teacher in message and "\n" not in message
    assert "methods that read logits or the pooled vector" in message or "--hint_layer" in message


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("student, teacher", [("vgg8", "vgg13"), ("ShuffleV1", "wrn_16_2"), ("MobileNetV2", "vgg13")])
def test_it_serves_other_families_or_says_why_not(name, student, teacher):
    student, teacher = networks(student, teacher)
    try:
        setup = setup_of(student, teacher)
        method = METHODS[name](setup, options(name))
    except MethodError as refused:
        assert student.name in str(refused) and teacher.name in str(refused)
        assert name in ("kdsvd", "fsp", "abound", "hint", "norm")
        return
    term = method if method.in_main else method.stage(student).term
    term.train()
    term.start_epoch(1, torch.Generator().manual_seed(0))
    batch = Batch(None, setup.labels[:2], torch.arange(2), None)
    outputs = (out._replace(strong=out.logits) for out in (setup.student, setup.teacher))
    assert term(*outputs, batch).isfinite()


def test_an_objective_of_no_weight_is_refused():
    chosen = options("kd", "-r", "0", "-a", "0")
    setup = setup_of(*networks())
    with pytest.raises(ValueError, match="every weight is 0"):
        student_objective(METHODS["kd"](setup, chosen), setup, chosen)


@pytest.mark.parametrize("name, avg", [
    pytest.param(name, avg, marks=pytest.mark.slow if avg == 0 or METHODS[name].reads == {"logits"} else ())
    for name in METHODS for avg in (1, 0)])
def test_it_trains_on_the_digits_with_and_without_ikd_to_a_falling_loss(name, avg, digits_teacher, tmp_path):
    method, epochs = METHODS[name], 4 if name == "crd" else 2
    flags = ["--nce_k", 256] if name == "crd" else ["--ramp", 0] if method.ramp else []
    flags += ["-a", 0.5] if method.alpha is not None else []  # for most, the added KD
    scripts.succeed("train_student.py", "--path_t", digits_teacher, "--distill", name, "--avg", avg,
                    "--dataset", "digits", "--imbalance", 0.02, "--batch_size", 32, "--epochs", epochs,
                    "--init_epochs", 3, "--warm_up", 0, "--save_dir", tmp_path, *flags)
    lines = scripts.read_log(scripts.only(tmp_path / "student_model"))
    if name == "crd":  # its loss rises while the banks, random at first, fill; what counts is what follows
        lines, epochs = lines[1:], 3
    assert all(math.isfinite(value) for line in lines for value in [line["loss"], *line["losses"].values()])
    stage, (first, *_, last) = [line for line in lines if line["phase"] != "train"], lines[-epochs:]
    # IKD joins in epoch 2: what falls is the rest.
    last_rest, first_rest = (line["loss"] - line["losses"].get("ikd", 0) for line in (last, first))
    assert last_rest < first_rest and ("ikd" in last["losses"]) == (avg > 0)
    if name in STAGED:
        assert [line["phase"] for line in stage] == [STAGED[name]] * 3 and stage[2]["loss"] < stage[0]["loss"]
        assert "test_top1" not in stage[0]
    else:
        assert not stage and name in first["losses"]


class TestContrastSampler:
    """CRD's negatives have the published sampler's distribution."""

    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)[order]

    def draw(self, negatives, relax=False, times=400):
        from distiller_zoo.crd import ContrastSampler
        sampler = ContrastSampler(self.labels, 3, negatives, relax)
        generator = torch.Generator().manual_seed(0)
        idx = torch.arange(60)
        return idx, torch.stack([sampler.draw(idx, generator) for _ in range(times)])

    @pytest.mark.parametrize("negatives", [8, 45, 200])
    def test_negatives_are_uniform_among_other_classes(self, negatives):
        _, drawn = self.draw(negatives)
        for i in (0, 7, 33):
            rows = drawn[:, i, 1:]
            own = self.labels[i]
            others = (self.labels != own).nonzero().squeeze(1)
            counts = torch.bincount(rows.flatten(), minlength=60)
            assert (self.labels[rows] != own).all()
            expected = rows.numel() / len(others)
            # Chi-squared of at most 49 degrees of freedom exceeds 98 once in 50,000.
            assert ((counts[others] - expected) ** 2 / expected).sum() < 98

    def test_without_replacement_where_there_are_enough_else_with(self):
        # The classes have 30, 20 and 10 samples, so 30, 40 and 50 negatives.
        for negatives, enough in [(8, {0, 1, 2}), (35, {1, 2}), (45, {2}), (200, set())]:
            _, drawn = self.draw(negatives, times=3)
            assert drawn.shape == (3, 60, 1 + negatives)
            for i in range(60):
                distinct = {len(set(row.tolist())) == negatives for row in drawn[:, i, 1:]}
                assert distinct == {self.labels[i].item() in enough}

    def test_the_positive_is_the_sample_or_with_relax_any_of_its_class(self):
        idx, exact = self.draw(8)
        assert (exact[:, :, 0] == idx).all()
        _, relaxed = self.draw(8, relax=True)
        positives = relaxed[:, :, 0]
        assert (self.labels[positives] == self.labels).all()
        of_first = torch.bincount(positives[:, 0], minlength=60)
        first = self.labels[0]
        assert (of_first > 0).sum() == (self.labels == first).sum()


def test_a_stage_runs_no_student_where_its_loss_needs_none(pair):
    objective = Objective({"paraphraser": build("factor", pair).stage(pair[0]).term})
    assert not objective.reads_student and objective.reads == {"stages"}
