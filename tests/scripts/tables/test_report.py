"""The report, from run folders such as helper/record/run.py writes: its figures, what it keeps apart, what it says."""
import csv
import json
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from helper.cli import student_options
from helper.record import published
from helper.record.naming import student_folder
from helper.record.records import label, read_records
from scripts.tables.aggregate import RESAMPLES, SEED, bootstrap, rows_of, table
from scripts.tables.hparams import write_hparams
from scripts.tables.report import FILES, write_report
from tests.support import scripts
from tests.support.runs import write_run

PAIR = "resnet56->resnet20"


KD = "--distill kd -r 0.1 -a 0.9"
IKD = "--distill dkd -r 1 -a 1 -b 2 --avg 6.5 --intra_T 1.0"
KD_TOPS = {"1": [50.0, 71.0, 70.0], "2": [51.0, 70.0, 71.0], "3": [52.0, 69.0, 69.5]}
IKD_TOPS = {"1": [53.0, 70.0, 71.5], "2": [53.0, 71.9, 71.9]}


@pytest.fixture
def save(tmp_path):
    """Three trials of kd, two of dkd+IKD."""
    for flags, trials in ((KD, KD_TOPS), (IKD, IKD_TOPS)):
        for trial, tops in trials.items():
            write_run(tmp_path, f"{flags} --trial {trial}", tops)
    return tmp_path


def asked(*flags_of_runs):
    """A table as reproduce.py records it."""
    runs = []
    for flags in flags_of_runs:
        options = student_options(["--path_t", "t", "--model_s", "resnet20", *flags.split()])
        name = student_folder(options, "resnet56")
        runs.append({"name": name, "folder": f"student_model/{name}", "pair": PAIR, "method": label(vars(options)),
                     "variant": "", "trial": options.trial})
    return {"title": "Asked", "runs": runs}


def content_of(save, wanted=None, significance=False):
    records, faults = read_records(save)
    assert faults == []
    return table("T", rows_of(records, save, wanted and wanted["runs"]), significance)


def rows(content):
    return {row["name"]: row for block in content["pairs"] for row in block["rows"]}


def test_means_and_sample_deviations_of_last_and_best(save):
    row = rows(content_of(save))["kd"]
    last, best = [70.0, 71.0, 69.5], [71.0, 71.0, 69.5]
    assert row["last"] == {"mean": statistics.fmean(last), "std": statistics.stdev(last), "n": 3, "values": last}
    assert (row["best"]["mean"], row["best"]["std"]) == (statistics.fmean(best), statistics.stdev(best))
    assert row["last"]["std"] == pytest.approx(np.std(last, ddof=1))


def test_last_is_held_against_last_and_best_against_best(save):
    found = rows(content_of(save))
    kd, dkd = published.figure("cifar100", PAIR, "kd"), published.figure("cifar100", PAIR, "dkd")
    assert (kd.epoch, dkd.epoch) == ("last", "best")
    assert found["kd"]["published"]["difference"] == pytest.approx(statistics.fmean([70.0, 71.0, 69.5]) - kd.top1)
    assert found["dkd+IKD"]["published"] is None  # of no IKD run is there a published accuracy
    for trial, tops in IKD_TOPS.items():
        write_run(save, f"--distill dkd -r 1 -a 1 -b 2 --trial {trial}", tops)
    row = rows(content_of(save))["dkd"]
    assert row["published"]["difference"] == pytest.approx(statistics.fmean([71.5, 71.9]) - dkd.top1)
    write_run(save, "--distill dkd -r 1 -a 1 -b 2 --trial 3", [80.0, 60.0, 60.0])
    assert rows(content_of(save))["dkd"]["published"]["difference"] == pytest.approx(
        statistics.fmean([71.5, 71.9, 80.0]) - dkd.top1)


@pytest.mark.parametrize("flags, settings", [
    ("--warm_up 0", {}), ("--batch_size 128", {}), ("--learning_rate 0.1", {}), ("--lr_decay_epochs 1,2", {}),
    ("--weight_decay 0.001", {}), ("--seed 5", {}), ("", {"amp": "bf16"}), ("", {"channels_last": True}),
    ("", {"device": "cuda", "tf32": "on"}), ("", {"teacher_source": "cache"}), ("", {"path_t": "other.pth"}),
    ("", {"a_setting_of_the_future": 1}), ("--epochs 4", {}), ("--kd_T 2", {})])
def test_runs_of_other_settings_are_another_row(save, flags, settings):
    write_run(save, f"{KD} --trial 9 {flags}", [1.0, 2.0, 3.0], **settings)
    counts = sorted(row["last"]["n"] for name, row in rows(content_of(save)).items() if name.startswith("kd"))
    assert counts == [1, 3]


def test_a_teacher_trained_anew_under_the_same_path_is_another_row(save):
    write_run(save, f"{KD} --trial 9", [1.0, 2.0, 3.0], teacher_top1=71.0)
    content = content_of(save)
    assert {name: row["last"]["n"] for name, row in rows(content).items() if name.startswith("kd")} == {
        "kd (teacher_top1 72.3)": 3, "kd (teacher_top1 71)": 1}
    assert [found["top1"] for found in content["pairs"][0]["teacher_top1"]] == [71.0, 72.34]


def test_two_accuracies_of_one_teacher_are_explained(save):
    write_run(save, f"{KD} --trial 9", [50.0, 60.0, 70.0], teacher_top1=72.36, amp="bf16")
    assert content_of(save)["pairs"][0]["teacher_top1"] == [
        {"top1": 72.34, "how": "live in float32 on cpu"}, {"top1": 72.36, "how": "live in bfloat16 on cpu"}]
    write_report(save, save / "out", None, False, False)
    assert ("The teacher tests at 72.34 (live in float32 on cpu) and 72.36 (live in bfloat16 on cpu); published 72.34"
            in (save / "out" / "report.html").read_text())


def test_labels_alone_stand_for_every_teacher_of_a_student_and_count_once(save):
    """Their run is the same whoever the teacher is, and the teacher's accuracy says nothing of it."""
    for teacher in ("resnet56", "resnet110"):
        write_run(save, "--distill kd -r 1 -a 0 --trial 1", [50.0, 60.0, 69.0], teacher=teacher, teacher_top1=1.0)
    write_run(save, KD, [50.0, 60.0, 70.0], teacher="resnet110", teacher_top1=74.31)
    blocks = {block["pair"]: block for block in content_of(save)["pairs"]}
    assert set(blocks) == {PAIR, "resnet110->resnet20"}
    for block in blocks.values():
        assert block["rows"][0]["name"] == "ce" and block["rows"][0]["last"]["n"] == 1
        assert 1.0 not in [found["top1"] for found in block["teacher_top1"]]


def test_rows_have_a_stable_order_and_names_of_what_differs_alone(tmp_path):
    """By pair, method and settings, whatever was run first."""
    for flags in ("--kd_T 10 --trial 1", "--kd_T 2 --trial 10", "--kd_T 2 --trial 9", "--kd_T 2 --trial 1"):
        where = tmp_path / ("grid/10" if "10 --trial" in flags else ".")
        write_run(where, f"{KD} {flags}", [50.0, 70.0])
    write_run(tmp_path, "--distill dkd -r 1 -a 1 -b 2", [50.0, 70.0])
    write_run(tmp_path, "--distill attention", [50.0, 70.0])
    write_run(tmp_path, "--distill kd -r 1 -a 0", [50.0, 70.0])
    assert list(rows(content_of(tmp_path))) == ["ce", "kd (kd_T 2)", "kd (kd_T 10)", "dkd", "attention"]
    said = scripts.succeed("scripts/summary.py", "--save_dir", tmp_path).stdout.splitlines()[2:]
    assert [(re.split("  +", line)[1], re.split("  +", line)[2]) for line in said[1:5]] == [
        ("kd (kd_T 2)", "1"), ("kd (kd_T 2)", "9"), ("kd (kd_T 2)", "10"), ("kd (kd_T 10)", "1")]


@pytest.mark.parametrize("flags, settings", [
    ("--print_freq 7 --num_workers 0 --data_dir elsewhere", {}), ("", {"fast": True}), ("", {"teacher_cache": "auto"}),
    ("--intra_T 3", {}), ("--init_epochs 5", {}), ("", {"cache_dtype": "float32"})])
def test_settings_without_effect_are_no_other_row(save, flags, settings):
    folder = write_run(save, f"{KD} --trial 9 {flags}", [50.0, 60.0, 70.0], **settings)
    assert folder.exists() and rows(content_of(save))["kd"]["last"]["n"] == 4


def test_common_settings_are_said_once_and_all_others_by_row(save):
    content = content_of(save)
    common = content["settings"] | content["pairs"][0]["settings"]
    assert [common[key] for key in ("epochs", "warm_up", "batch_size", "amp", "lr_decay_epochs")] == [
        3, 20, 64, "none", [150, 180, 210]]
    settings = rows(content)["dkd+IKD"]["settings"]
    assert (settings["gamma"], settings["beta"], settings["avg"], settings["intra_T"]) == (1, 2, 6.5, 1)
    for row in rows(content).values():
        assert not set(row["settings"]) & set(common)


def test_missing_runs_are_shown_as_missing_and_failed_ones_as_failed(save):
    (save / "logs").mkdir()
    write_run(save, f"{IKD} --trial 3", [40.0, 41.0], finished=False)
    wanted = asked(*(f"{flags} --trial {trial}" for trial in "1234" for flags in (KD, IKD, "--distill crd -r 1 -a 0")))
    found = rows(content_of(save, wanted))
    assert list(found) == ["kd", "dkd+IKD", "crd"]
    assert found["kd"]["missing"] == {"4": "not begun"}
    assert found["dkd+IKD"]["missing"] == {"3": "unfinished, 2 of 2 epochs", "4": "not begun"}
    assert found["crd"]["last"] == {"mean": None, "std": None, "n": 0, "values": []}
    for run in wanted["runs"]:
        if run["method"] == "crd":
            (save / "logs" / f"{run['name']}.failed").write_text("the <b>loss</b> is not finite\n")
    write_report(save, save / "out", wanted, False, False)
    text = {name: (save / "out" / name).read_text() for name in FILES}
    assert re.search(r"\| crd \| 0, without 1, 2, 3, 4 \| failed \| failed \|", text["report.md"])
    assert "dkd+IKD, trial 3: unfinished, 2 of 2 epochs" in text["report.md"]
    assert "crd, trial 1: failed: the &lt;b&gt;loss&lt;/b&gt; is not finite" in text["report.md"]
    assert '<p class="wrong">crd, trial 1: failed: the &lt;b&gt;loss&lt;/b&gt; is not finite</p>' in text["report.html"]
    assert "1: failed: the <b>loss</b> is not finite" in text["report.csv"] and "failed" in text["report.tex"]


def test_a_table_of_which_all_failed_is_reported(tmp_path):
    wanted = asked(KD)
    with pytest.raises(ValueError, match="no finished student of this table"):
        write_report(tmp_path, tmp_path / "out", wanted, False, False)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{wanted['runs'][0]['name']}.failed").write_text("no teacher")
    write_report(tmp_path, tmp_path / "out", wanted, False, False)
    assert "kd, trial 1: failed: no teacher" in (tmp_path / "out" / "report.md").read_text()


def test_what_is_not_published_is_marked(save):
    found = rows(content_of(save))
    assert found["kd"]["remarks"] == []
    assert found["dkd+IKD"]["remarks"] == ["IKD's avg 6.5 and intra_T 1 are not published for dkd on this pair"]
    write_run(save, "--distill dkd -r 1 -a 1 -b 8 --trial 1", [50.0, 60.0, 70.0])
    assert rows(content_of(save))["dkd"]["remarks"] == ["not the preset: ramp 0 instead of 20, b 8 instead of 2"]


def test_a_short_schedule_is_called_no_reproduction(save):
    cautions = " ".join(content_of(save)["cautions"])
    assert "Trained for 3 epochs; the published schedule has 240: no reproduction" in cautions
    assert "Some rows have 2 trials" in cautions


def test_differences_are_paired_over_common_trials(save):
    (found,) = content_of(save, significance=True)["significance"]
    differences = np.array([71.5 - 70.0, 71.9 - 71.0])
    assert (found["method"], found["against"], found["trials"]) == ("dkd+IKD", "kd", ["1", "2"])
    assert found["mean"] == pytest.approx(differences.mean())
    draws = np.random.default_rng(SEED).choice(differences, (RESAMPLES, 2))
    assert found["interval"] == pytest.approx(np.quantile(draws.mean(1), [0.025, 0.975]), abs=0.01)
    # Other trials of other batches do not compare.
    write_run(save, "--distill kd -r 1 -a 0 --batch_size 8 --trial 1", [1.0, 2.0, 3.0])
    assert len(content_of(save, significance=True)["significance"]) == 1


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = [low <= 0 <= high for low, high in (bootstrap(rng.normal(size=25)) for _ in range(200))]
    assert 0.88 < np.mean(inside) < 0.98
    assert bootstrap(np.array([1.0])) is None


class Loads(HTMLParser):
    """Collects what a page would load."""

    def __init__(self):
        super().__init__()
        self.asks, self.rows = [], 0

    def handle_starttag(self, tag, attributes):
        self.rows += tag == "tr"
        self.asks += [value for key, value in attributes if key in ("src", "href") and not value.startswith("data:")]


def test_all_files_say_the_same(save):
    assert write_report(save, save / "out", None, True, False) == []
    text = {name: (save / "out" / name).read_text() for name in FILES}
    content = json.loads(text["report.json"])
    kd = rows(content)["kd"]
    assert f"{kd['last']['mean']:.2f} ± {kd['last']['std']:.2f}" == "70.17 ± 0.76"
    text["report.html"] = text["report.html"].replace("\u00a0", " ")
    for name in ("report.md", "report.html"):
        assert "70.17 ± 0.76" in text[name] and "70.66 (R)" in text[name] and "-0.49" in text[name]
        assert "RepDistiller" in text[name] and "warm_up 20" in text[name] and "-r 0.1 -a 0.9 --trial 1" in text[name]
    assert r"70.17{\tiny$\pm$0.76}" in text["report.tex"] and r"\textbf{71.70}" in text["report.tex"]
    lines = list(csv.DictReader(text["report.csv"].splitlines()))
    assert [line["method"] for line in lines] == ["kd", "dkd+IKD"]
    assert (lines[0]["last_mean"], lines[0]["last_std"], lines[0]["difference"]) == ("70.17", "0.76", "-0.49")
    assert lines[0]["last_values"] == "70.00 71.00 69.50" and json.loads(lines[0]["settings"])["epochs"] == 3
    loads = Loads()
    loads.feed(text["report.html"])
    assert loads.asks == [] and re.search(r"url\((?!#)", text["report.html"]) is None and loads.rows == 3 + 2 + 3
    assert text["report.html"].count("<svg") == 1 and "currentColor" in text["report.html"]


PREAMBLE = r"""
\documentclass[10pt,twocolumn]{article}
\usepackage[utf8]{inputenc}
\usepackage{graphicx}
\IfFileExists{booktabs.sty}{\usepackage{booktabs}}{\let\toprule\hline\let\midrule\hline\let\bottomrule\hline}
\begin{document}
A paper. \input{report.tex}
\end{document}
"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-base)")
@pytest.mark.parametrize("pairs", [1, 3, 7])
def test_the_latex_table_compiles_and_fits(pairs, tmp_path):
    """One column of two with up to three pairs, both with seven; with a name that no column would hold, too."""
    table_pairs = published.TABLES["same"]["pairs"][:pairs]
    for pair in table_pairs:
        teacher, student = pair.split("->")
        for flags in (KD, IKD, "--distill similarity", f"{KD} --kd_T 2 --weight_decay 0.0001 --seed 3"):
            for trial in "12":
                write_run(tmp_path / ("grid/x" if "seed" in flags else "."), f"{flags} --trial {trial}", [50.0, 70.0],
                          teacher=teacher, student=student, teacher_top1=published.TEACHERS[teacher])
    write_report(tmp_path, tmp_path, None, True, False)
    text = (tmp_path / "report.tex").read_text()
    assert ("\\begin{table}" in text) == (pairs <= 3)
    (tmp_path / "paper.tex").write_text(PREAMBLE)
    run = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"], cwd=tmp_path,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "Overfull" not in run.stdout and (tmp_path / "paper.pdf").exists()


HOSTILE = "a\nb <script>alert(1)</script> | =1+1 \\input{x} \x1b[31m"


def test_hostile_texts_stay_texts(save):
    """Of paths and commands: no line of LaTeX outside its comment, no script in a page, no formula in a cell."""
    write_run(save, f"{KD} --trial 9", [50.0, 60.0, 70.0], path_t=HOSTILE, args={"command": f"python {HOSTILE}"})
    (save / "logs").mkdir()
    wanted = asked(*(f"{KD} --trial {trial}" for trial in ("1", "9", "=2")))
    for run in wanted["runs"]:
        (save / "logs" / f"{run['name']}.failed").write_text(HOSTILE)
    write_report(save, save / "out", wanted | {"title": HOSTILE}, False, False)
    text = {name: (save / "out" / name).read_text() for name in FILES}
    assert "<script>" not in text["report.html"] and "\x1b" not in "".join(text.values())
    prose = [line for line in text["report.md"].splitlines() if not line.startswith("    ")]
    assert not any("<script>" in line for line in prose) and not any(line.startswith("b <") for line in prose)
    assert not any(line.startswith("b ") for line in text["report.tex"].splitlines())
    assert "\\input{x}" not in re.sub("(?m)^%.*", "", text["report.tex"])
    cells = [cell for line in csv.reader(text["report.csv"].splitlines()) for cell in line]
    assert not any(cell[:1] in ("=", "+", "@") or re.match("-[^0-9]", cell) for cell in cells)
    assert any(cell.startswith("'=2: failed") for cell in cells)


def test_without_matplotlib_the_report_has_no_curves_and_says_what_to_install(save, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    (fault,) = write_report(save, save / "out", None, False, False)
    assert "they need matplotlib, pip install -r requirements-extras.txt" in fault
    assert "data:image" not in (save / "out" / "report.html").read_text()


def test_tensorboard_reads_the_hparams_of_every_run(save):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata
    table_rows = rows_of(read_records(save)[0], save)
    for _ in range(2):  # written again, it is still one file a run
        write_hparams(table_rows)
    files = sorted(save.glob("student_tensorboards/*/*.hparams"))
    assert len(files) == 5
    groups = {}
    for path in files:
        reader = EventAccumulator(str(path.parent)).Reload()
        content = reader.PluginTagToContent(metadata.PLUGIN_NAME)
        start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
        held = [start.hparams["method"].string_value, *(start.hparams[key].number_value for key in ("avg", "epochs")),
                *(round(reader.Scalars(f"result/{epoch}_top1")[0].value, 1) for epoch in ("last", "best"))]
        groups.setdefault(start.group_name, []).append(tuple(held))
        assert metadata.SESSION_END_INFO_TAG in content
    assert {name: sorted(runs) for name, runs in groups.items()} == {
        f"{PAIR} kd": [("kd", 0, 3, 69.5, 69.5), ("kd", 0, 3, 70.0, 71.0), ("kd", 0, 3, 71.0, 71.0)],
        f"{PAIR} dkd+IKD": [("dkd+IKD", 6.5, 3, 71.5, 71.5), ("dkd+IKD", 6.5, 3, 71.9, 71.9)]}


def test_the_script_and_its_refusals(save, tmp_path):
    out = scripts.succeed("scripts/report.py", "--save_dir", save, "--hparams")
    assert "report.html" in out.stdout and {path.name for path in (save / "report").iterdir()} == set(FILES)
    broken = save / "student_model" / "S:broken"
    broken.mkdir()
    (broken / "args.json").write_text("{")
    said = scripts.succeed("scripts/report.py", "--save_dir", save).stderr
    assert said.count("\n") == 1 and "S:broken/args.json is damaged" in said and "left out" in said
    assert "would be written to" in scripts.succeed("scripts/report.py", "--save_dir", tmp_path, "--dry_run").stdout
    (tmp_path / "table.json").write_text("[]")
    for flags, says in ((("--save_dir", tmp_path / "nothing"), "no finished student under"),
                        (("--table", tmp_path / "none.json"), "name the table.json of reproduce.py"),
                        (("--table", tmp_path / "table.json"), "is no table of reproduce.py")):
        bad = scripts.run("scripts/report.py", *flags)
        assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
        assert says in bad.stderr


def test_the_report_of_a_table_in_this_folder_is_written_beside_it(save):
    (save / "table.json").write_text(json.dumps(asked(f"{KD} --trial 1")))
    script = str(scripts.ROOT / "scripts" / "report.py")
    said = scripts.succeed(script, "--save_dir", ".", "--table", "table.json", root=save).stdout
    assert said.endswith("are in .\n") and "| kd | 1 | 70.00 |" in (save / "report.md").read_text()
