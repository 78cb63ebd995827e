"""The command line: what it takes, freezes, warns of and suggests."""
import pytest

from distiller_zoo import METHODS
from helper.cli import _student_parser, parse_student, parse_teacher, student_options
from helper.util.errors import UsageError


def test_options_are_frozen_after_parsing():
    options = student_options(["--path_t", "t"])
    with pytest.raises(AttributeError, match="frozen after parsing"):
        options.avg = 2.0


def test_parsing_opens_no_file(tmp_path):
    """A recipe's weights go by the teacher's name as the path tells it; the file need not be there."""
    options = student_options(["--recipe", "cifar100", "--distill", "dkd", "--model_s", "resnet20", "--path_t",
                               str(tmp_path / "resnet56_vanilla/ckpt_epoch_240.pth")])
    assert (options.beta, options.kd_T) == (2.0, 4.0)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_no_run_can_work_with_are_refused(method):
    """Every number of either script, temperatures, rates, decays, weights and counts."""
    given = {"--path_t": "t", "--distill": method}
    numbers = [action.option_strings[0] for action in _student_parser(METHODS[method])._actions
               if getattr(action.type, "__qualname__", "").startswith("_number")]
    assert {"-r", "--learning_rate", "--weight_decay", "--epochs"} < set(numbers)
    for flag in numbers:
        for number in ("1e308", "1e-308", "1" + 400 * "0"):
            with pytest.raises(UsageError, match=r"is too (large|small) a number|is not (a number|an integer)"):
                parse_student([word for pair in (given | {flag: number}).items() for word in pair])


@pytest.mark.parametrize("flags, says", [
    (["--epochs", "20"], "--warm_up 20 fills all 20 epochs"),
    (["--epochs", "20", "--warm_up", "2"], "never decays after epoch 150, 180, 210"),
    (["--intra_T", "1"], "--intra_T has no effect without the IKD term: give --avg"),
    (["--ikd_means", "all"], "--ikd_means has no effect without the IKD term"),
    (["--avg", "1", "--epochs", "1", "--warm_up", "0"], "--avg has no effect in one epoch"),
    ([], "note      a warm-up of 20 epochs, as in IKD's code; the CRD benchmark has none: --warm_up 0"),
    (["--nce_k", "8", "--hint_layer", "1", "--model_t", "x"], "--nce_k, --hint_layer, --model_t: not read by kd"),
])
def test_what_cannot_be_meant_is_warned_of(flags, says):
    _, notes = parse_student(["--path_t", "t", *flags])
    assert any(says in note for note in notes), notes
    assert all(note.startswith(("warning   ", "note      ")) for note in notes)


def test_a_command_that_says_all_has_no_notes():
    assert parse_student(["--path_t", "t", "--warm_up", "20", "-t", "7"])[1] == []
    crd = ["--distill", "crd", "--mode", "relax"]
    assert parse_student(["--path_t", "t", "--avg", "6.5", "--intra_T", "1", *crd])[1] == []


def test_help_is_as_wide_as_the_terminal(monkeypatch, capsys):
    for columns in (70, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            parse_student(["--help"])
        lines = capsys.readouterr().out.split("\nmethods (")[0].splitlines()
        assert columns - 20 < max(map(len, lines)) <= columns


@pytest.mark.parametrize("given, meant", [("--lr", "--learning_rate"), ("--bs", "--batch_size"),
                                          ("--wd", "--weight_decay"), ("--gpu", "--device cuda")])
def test_both_scripts_understand_the_fields_words(given, meant):
    for parse in (parse_teacher, lambda argv: parse_student(["--path_t", "t", *argv])):
        with pytest.raises(UsageError, match=f"{given} is not understood: did you mean {meant}"):
            parse([given, "1"])


def test_networks_of_other_libraries_are_suggested():
    with pytest.raises(UsageError, match="torchvision:resnet18"):
        student_options(["--path_t", "t", "--model_s", "resnet18"])
