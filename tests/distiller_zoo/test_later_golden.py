"""The methods beyond the published code, against values and gradients of their authors' code (golden/LATER.md)."""
import pytest
import torch
import torch.nn.functional as F

from distiller_zoo import (
    DIST,
    DKD,
    HCL,
    CATLoss,
    CRLDLoss,
    CTKDLoss,
    DistillKL,
    LDRLDLoss,
    MLKDLoss,
    NORMLoss,
    RLDLoss,
    SDDLoss,
    WKDFeatureLoss,
    WKDLogitLoss,
    cell_logits,
    cka_cost,
    classifier_cost,
    normalise_logits,
    wasserstein,
)
from distiller_zoo._layers import ConvRegressor
from distiller_zoo._logits import log_softmax, standardise
from distiller_zoo.ctkd import strength_of
from distiller_zoo.reviewkd import ABF
from tests.golden import cases, recipe
from tests.golden.cases import LATER, A, check_later


@pytest.fixture
def logits():
    return cases.logits()


@pytest.fixture
def views(logits):
    """s_w, s_s, t_w, t_s, labels."""
    s, t, y = logits
    return (s, A("a/student_strong", (16, 100), 2.0).requires_grad_(), t, A("a/teacher_strong", (16, 100), 2.0), y)


# RLD


@pytest.mark.parametrize("case, alpha, beta, T, tau", [
    ("scd_T1", 1, 0, 4, 1), ("scd_T4", 1, 0, 4, 4), ("mcd_T4", 0, 1, 4, 1), ("a1_b8_T4", 1, 8, 4, 1),
    ("a1_b8_T4_same_t", 1, 8, 4, 4), ("imagenet_a1_b0.5_T1", 1, 0.5, 1, 1), ("edge_mcd_T4", 0, 1, 4, 1),
    ("edge_a1_b8_T4", 1, 8, 4, 1), ("edge_a1_b8_T4_same_t", 1, 8, 4, 4), ("standardised_a1_b8_T2_same_t", 1, 8, 2, 2)])
def test_rld(logits, case, alpha, beta, T, tau):
    s, t, y = logits
    y = torch.tensor(LATER[f"a/rld_{case}"].get("target", y.tolist()))
    pair = (standardise(s), standardise(t)) if "standardised" in case else (s, t)
    check_later(f"rld_{case}", RLDLoss(alpha, beta, T, tau)(*pair, y), s)


# LDRLD


@pytest.mark.parametrize("case, alpha, beta, T, k", [
    ("L_T4_k7", 1, 0, 4, 7), ("R_T4_k7", 0, 1, 4, 7), ("L_T2_k3", 1, 0, 2, 3), ("sum_T4_k7_a10.5_b7", 10.5, 7, 4, 7),
    ("with_ce_T4_k7_a10.5_b7", 10.5, 7, 4, 7)])
def test_ldrld(logits, case, alpha, beta, T, k):
    s, t, y = logits
    ce = F.cross_entropy(s, y) if "with_ce" in case else 0
    check_later(f"ldrld_{case}", LDRLDLoss(alpha, beta, T, k)(s, t) + ce, s)


# SDD and CAT-KD


def cam(f, weight):
    return torch.einsum("bchw,kc->bkhw", f, weight)


@pytest.fixture
def maps():
    """smap, swc, sbc, tmap, twc, tbc of LATER.md; the student's require gradients."""
    student = [A("a/smap", (16, 64, 8, 8), 2.0), A("a/swc", (100, 64), 0.5), A("a/sbc", (100,), 0.1)]
    return [*(x.requires_grad_() for x in student),
            A("a/tmap", (16, 64, 8, 8), 4.0), A("a/twc", (100, 64), 0.5), A("a/tbc", (100,), 0.1)]


@pytest.mark.parametrize("variant, weights", [("kd", (1, 0)), ("dkd", (1, 8))])
@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 4)])
def test_sdd(maps, variant, weights, sizes):
    case = f"sdd_{variant}_M{''.join(map(str, sizes))}"
    y = torch.tensor(LATER[f"a/{case}"]["target"])
    cells = []
    for f, weight, bias in (maps[:3], maps[3:]):
        logits = f.mean((2, 3)) @ weight.T + bias
        cells.append(cell_logits(logits, cam(f, weight), sizes))
    check_later(case, SDDLoss(variant, *weights, 4.0)(*cells, y), *maps[:3])


@pytest.mark.parametrize("case", ["res2_plain", "res2_normalised", "res4_plain", "res4_normalised",
                                  "res4_normalised_small_student"])
def test_catkd(maps, case):
    smap, swc, _, tmap, twc, _ = maps
    if "small" in case:
        smap = A("a/smap4", (16, 64, 4, 4), 2.0).requires_grad_()
    loss = CATLoss(int(case[3]), "normalised" in case)
    check_later(f"cat_{case}", loss(cam(smap, swc), cam(tmap, twc)), smap, swc)


def test_catkd_with_cross_entropy(maps, logits):
    smap, swc, _, tmap, twc, _ = maps
    classes = cam(smap, swc)
    loss = F.cross_entropy(classes.mean((2, 3)), logits[2]) + 15 * CATLoss(2, False)(classes, cam(tmap, twc))
    check_later("cat_kd_total_res2_plain_w15", loss, smap, swc)


# WKD


def distances(name):
    if name == "fc":
        return classifier_cost(A("a/wkd/proto", (100, 64)))
    if name == "cka":
        features = A("a/wkd/class_feat", (100, 12, 16)) + 2 * A("a/wkd/class_shift", (5, 12, 16)).repeat(20, 1, 1)
        return cka_cost(features.flatten(0, 1), torch.arange(100).repeat_interleave(12), 100)
    r = A("a/wkd/cost", (100, 100), 0.5).abs()
    return ((r + r.T) / 2).fill_diagonal_(0)


@pytest.mark.parametrize("case, cost, T, gamma, options", [
    ("target_term_only", "random", 8, 0, {}), ("random_cost_T8_g1", "random", 8, 1, {}),
    ("random_cost_T8_g600", "random", 8, 600, {}), ("fc_cost_T8_g600", "fc", 8, 600, {}),
    ("cka_cost_T8_g600", "cka", 8, 600, {}), ("fc_cost_T2_g30", "fc", 2, 30, {}),
    ("fc_cost_T2_g30_it2", "fc", 2, 30, {"iterations": 2}),
    ("fc_cost_T2_g30_lambda0.2_it3", "fc", 2, 30, {"regularisation": 0.2, "iterations": 3})])
def test_wkds_loss_on_logits(logits, case, cost, T, gamma, options):
    loss = WKDLogitLoss(distances(cost), T, **options)
    check_later(f"wkdl_{case}", loss.target(*logits) + gamma * loss.distance(*logits), logits[0])


def test_wkds_distance_over_all_classes(logits):
    s, t = (log_softmax(z, 8.0).exp() for z in logits[:2])
    loss = WKDLogitLoss(distances("random"))
    check_later("wkdl_all_classes_random_cost_T8", wasserstein(s, t, loss.cost, loss.kernel, 10).mean(), logits[0])


@pytest.mark.parametrize("case, stage, ratio, grid", [
    ("grid1_ratio4", 1, 4, 1), ("grid4_ratio3", 1, 3, 4), ("grid4_ratio2_16px", 0, 2, 4)])
def test_wkds_loss_on_features(case, stage, ratio, grid):
    shapes = [((16, 8, 16, 16), (16, 16, 16, 16)), ((16, 16, 8, 8), (16, 24, 8, 8))][stage]
    f_s, f_t = A(f"a/fs{stage}", shapes[0]).requires_grad_(), A(f"a/ft{stage}", shapes[1])
    projector = ConvRegressor(f_s.shape, f_t.shape, relu=True)
    state = {key: value for key, value in projector.state_dict().items() if "running" not in key and "num" not in key}
    filled = recipe.fill({f"a/wkdf/{key}": value for key, value in state.items()})
    projector.load_state_dict({key.removeprefix("a/wkdf/"): value for key, value in filled.items()}, strict=False)
    loss = WKDFeatureLoss(ratio, grid)(projector.train()(f_s), f_t)
    check_later(f"wkdf_{case}", loss, f_s, projector.conv.weight, projector.bn.weight)


# CRLD and MLKD


@pytest.mark.parametrize("case, within, cross, T, ce", [
    ("within_view_T4", 1, 0, 4, 0), ("cross_view_T4", 0, 1, 4, 0), ("kd_wv2_cv0.5_T4", 2, 0.5, 4, 0),
    ("total_ce1_wv2_cv0.5_T4", 2, 0.5, 4, 1), ("total_imagenet_ce2_wv2_cv0.5_T1", 2, 0.5, 1, 2)])
def test_crld(views, case, within, cross, T, ce):
    s_w, s_s, _, t_s, y = views
    t_w = A("a/teacher_weak", (16, 100), 8.0)
    loss = CRLDLoss(within, cross, T)(s_w, s_s, t_w, t_s) + ce * (F.cross_entropy(s_w, y) + F.cross_entropy(s_s, y))
    check_later(f"crld_{case}", loss, s_w, s_s)


@pytest.mark.parametrize("case, T, ce, weight", [
    ("two_views_total", 4, 0.1, 0.9), ("two_views_total_imagenet_T1_ce0.5_kd0.5", 1, 0.5, 0.5),
    ("one_view_total", 4, 0.1, 0.9), ("two_views_total_standardised_T2_kd9", 2, 0.1, 9),
    ("two_views_total_saturated_teacher", 4, 0.1, 0.9),
    *[(f"{views}_{part}", 4, 0.1, 0.9) for views in ("two_views", "one_view") for part in ("ce", "kd", "cc", "bc")]])
def test_mlkd(views, case, T, ce, weight):
    s_w, s_s, t_w, t_s, y = views
    if "saturated" in case:
        t_w = t_w.clone()
        t_w[range(10), t_w[:10].argmax(1)] += 80
    both = "two_views" in case
    prepare = standardise if "standardised" in case else torch.nn.Identity()
    shown, taught = ([s_w, s_s], [t_w, t_s]) if both else ([s_w], [t_w])
    loss = MLKDLoss(T)
    classes, batch = loss.correlations(s_w, t_w)
    parts = {"ce": ce * sum(F.cross_entropy(s, y) for s in shown),
             "kd": weight * loss.kd([*map(prepare, shown)], [*map(prepare, taught)], t_w),
             "cc": weight * classes, "bc": weight * batch}
    part = case.rsplit("_", 1)[1]
    students = (s_w,) if part in ("cc", "bc") or not both else (s_w, s_s)
    check_later(f"mlkd_{case}", parts[part] if part in parts else sum(parts.values()), *students)


# DIST, CTKD, ReviewKD, logit standardisation


@pytest.mark.parametrize("case, beta, gamma, tau", [
    ("b1_g1_tau1", 1, 1, 1), ("b1_g1_tau4", 1, 1, 4), ("inter_tau4", 1, 0, 4), ("intra_tau4", 0, 1, 4)])
def test_dist(logits, case, beta, gamma, tau):
    check_later(f"dist_{case}", DIST(beta, gamma, tau)(*logits[:2]), logits[0])


@pytest.mark.parametrize("theta, epoch", [(-1.5, 1), (-3, 5), (-1.5, 10), (-1.5, 240)])
def test_ctkd(logits, theta, epoch):
    loss = CTKDLoss()
    with torch.no_grad():
        loss.theta.fill_(theta)
    loss.strength.fill_(strength_of(epoch, 10))
    check_later(f"ctkd_param{theta}_epoch{epoch}", loss(*logits[:2]), logits[0], loss.theta)


def test_ctkd_at_its_start(logits):
    check_later("ctkd_student_only_param1_T15.62", CTKDLoss()(*logits[:2]), logits[0])


TEACHER_SHAPES = [(16, 16, 16, 16), (16, 24, 8, 8), (16, 40, 4, 4)]
STUDENT_SHAPES = [(16, 8, 16, 16), (16, 16, 8, 8), (16, 32, 4, 4)]


def test_hcl():
    fs2, ft = ([A(f"a/{name}{i}", shape) for i, shape in enumerate(TEACHER_SHAPES)] for name in ("fs2", "ft"))
    for f in fs2:
        f.requires_grad_()
    check_later("hcl", HCL()(fs2, ft), *fs2)


@pytest.mark.parametrize("case, student, teacher, prefix", [
    ("reviewkd_abf_hcl", (0, 1, 2), (0, 1, 2), "a/abf"),
    ("reviewkd_abf_hcl_resized", (1, 2), (0, 1), "a/resized/abf")])
def test_reviewkd(case, student, teacher, prefix):
    fs = [A(f"a/fs{i}", STUDENT_SHAPES[i]).requires_grad_() for i in student]
    fs.append(A("a/vs", (16, 24))[:, :, None, None].requires_grad_())
    ft = [*(A(f"a/ft{i}", TEACHER_SHAPES[i]) for i in teacher), A("a/vt", (16, 40))[:, :, None, None]]
    reviewed, fusions, deeper = [], [], None
    for j, (f, f_t) in enumerate(reversed(list(zip(fs, ft, strict=True)))):  # the published order: the deepest is 0
        fusion = ABF(f.shape[1], 24, f_t.shape[1], j > 0).train()
        names = {"reduce.": "conv1.", "expand.": "conv2.", "attend.": "att_conv."}
        theirs = {key: f"{prefix}/abfs.{j}.{names[key[:7]]}{key[7:]}" for key in fusion.state_dict()}
        filled = recipe.fill({theirs[key]: value for key, value in fusion.state_dict().items()})
        fusion.load_state_dict({key: filled[theirs[key]] for key in theirs})
        out, deeper = fusion(f, deeper, f_t.shape[2:])
        reviewed.append(out)
        fusions.append(fusion)
    weights = [fusions[0].reduce[0].weight, fusions[1].attend[0].weight] if len(fs) == 4 else []
    check_later(case, HCL()(reviewed, ft[::-1]), *fs, *weights)


@pytest.mark.parametrize("case, T", [("kd_T2", 2), ("kd_T4", 4), ("kd_total_T2_ce0.1_kd9", 2), ("dkd_T2_a1_b8", 2)])
def test_logit_standardisation(logits, case, T):
    s, t, y = logits
    pair = standardise(s), standardise(t)
    loss = DKD()(*pair, y, 1, 8, T) if "dkd" in case else DistillKL(T)(*pair)
    check_later(f"logit_std_{case}", 9 * loss + 0.1 * F.cross_entropy(s, y) if "total" in case else loss, s)


# NORM


@pytest.mark.parametrize("case, shape", [("s4_epoch20", None), ("s4_epoch20_maxpool", (16, 40, 8, 8))])
def test_norms_match(case, shape):
    expanded = A("a/norm/fs", (16, 160, 4, 4)).requires_grad_()
    f_t = A("a/norm/ft", shape) if shape else A("a/ft2", (16, 40, 4, 4))
    check_later(f"norm_feature_{case}", NORMLoss()(expanded, f_t), expanded)


@pytest.mark.parametrize("case, r, a, b", [("logits_ce1_kd1", 1, 1, 0), ("total_r0.1_a0.9_b1_epoch5", 0.1, 0.9, 0.1)])
def test_norms_logits(logits, case, r, a, b):
    s, t, y = logits
    expanded = A("a/norm/fs", (16, 160, 4, 4)).requires_grad_()
    student, teacher = normalise_logits(s), normalise_logits(t)
    loss = r * F.cross_entropy(student, y) + a * DistillKL(4)(student, teacher)
    if b:
        loss = loss + b * NORMLoss()(expanded, A("a/ft2", (16, 40, 4, 4)))
    check_later(f"norm_{case}", loss, *([s, expanded] if b else [s]))
