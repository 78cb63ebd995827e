"""Bad input ends both scripts before any work: exit 2, one line with the cure, nothing written."""
import pytest
import torch

from distiller_zoo import METHODS
from helper import cli
from helper.util import arguments
from models import model_dict
from tests.support import scripts


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that are no good as teachers, and one that is."""
    folder = tmp_path_factory.mktemp("files")
    good = model_dict["resnet8"](num_classes=10).state_dict()

    def save(content, name):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        return path

    save({"model": good}, "resnet8_vanilla/good.pth")
    save({"model": good}, "resnet20_vanilla/wrong.pth")
    save({"model": model_dict["resnet8"](num_classes=100).state_dict()}, "resnet8_vanilla/hundred.pth")
    save({"model": model_dict["vgg8"](num_classes=10).state_dict()}, "vgg8_vanilla/vgg.pth")
    save({"model": model_dict["resnet8x4"](num_classes=10).state_dict()}, "resnet8x4_vanilla/wide.pth")
    save({"model": good | {"fc.bias": torch.full((10,), float("nan"))}}, "resnet8_vanilla/nan.pth")
    save([1, 2], "list.pth")
    save({"weights": 1}, "nothing.pth")
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_text("no checkpoint")
    whole = (folder / "resnet8_vanilla/good.pth").read_bytes()
    (folder / "short.pth").write_bytes(whole[: len(whole) // 2])
    return folder


# What the command is given beside the good flags, and what its line must say.
STUDENT = [
    ("--path_t missing.pth", "does not exist"),
    ("--path_t .", "is a directory"),
    ("--path_t {files}/empty.pth", "is empty"),
    ("--path_t {files}/text.pth", "not a PyTorch checkpoint"),
    ("--path_t {files}/short.pth", "truncated or corrupt"),
    ("--path_t {files}/list.pth", "no state dict inside but a list"),
    ("--path_t {files}/nothing.pth", "no state dict"),
    ("--path_t {files}/resnet8_vanilla/nan.pth", "fc.bias"),
    ("--path_t {files}/resnet20_vanilla/wrong.pth", "does not fit resnet20"),
    ("--path_t {files}/resnet8_vanilla/hundred.pth", "100 classes, digits has 10: give a teacher trained on digits"),
    ("--distill nothing", "there is no method 'nothing': choose from"),
    ("--distill KD", "did you mean kd?"),
    ("--distill dkd+ikd", "give --distill dkd --avg"),
    ("--distill ikd", "give --distill kd --avg"),
    ("--distill at", "did you mean attention?"),
    ("--distill ab", "did you mean abound?"),
    ("--model_s resnet9", "choose from"),
    ("--dataset CIFAR100", "did you mean cifar100?"),
    ("--distill kd --mlkd_T 2", "--mlkd_T is a flag of mlkd; flags of this method: --kd_T"),
    ("--epoch 3", "did you mean --epochs"),
    ("--lr 0.1", "did you mean --learning_rate"),
    ("--gpu 0", "did you mean --device cuda"),
    ("--lr_decay_epochs 150 180 210", "such as --lr_decay_epochs 150,180,210"),
    ("--nothing", "see --help"),
    ("stray", "stray is not understood"),
    ("--kd_T 0", "'0' is not a number above 0"),
    ("--intra_T -1", "'-1' is not a number above 0"),
    ("--kd_T 1e300", "'1e300' is too large a number"),
    ("--kd_T nan", "'nan' is not a number above 0"),
    ("-r -1", "'-1' is not a number of 0 or more"),
    ("-a -0.5", "'-0.5' is not a number of 0 or more"),
    ("-b much", "'much' is not a number of 0 or more"),
    ("--avg inf", "'inf' is not a number of 0 or more"),
    ("-r 0 -a 0", "every weight is 0"),
    ("--distill kd -b 3", "kd has no use for -b"),
    ("--distill nkd -a 1", "nkd has no use for -a"),
    ("--distill wttm -a 0", "give a number above 0"),
    ("--distill hint --hint_layer 5", "choose from"),
    ("--distill hint --hint_layer 4", "maps 0 to 3"),
    ("--distill crd --mode loose", "choose from"),
    ("--distill crd --nce_k 0", "'0' is not an integer of 1 or more"),
    ("--distill crd --nce_m 1", "'1' is not a number from 0 to below 1"),
    ("--distill fsp --path_t {files}/resnet8x4_vanilla/wide.pth", "fsp needs equal channels"),
    ("--distill attention --path_t {files}/vgg8_vanilla/vgg.pth", "resnet8 has 3, vgg8 4"),
    ("--distill mlkd --mlkd_T 0", "'0' is not a number above 0"),
    ("--distill dkd --logit_std yes", "choose from"),
    ("--distill reviewkd --batch_size 131", "of 1442 images in batches of 131 one is left alone"),
    ("--trial ../up", "cannot end a folder's name"),
    ("--init_epochs 0", "'0' is not an integer of 1 or more"),
]
BOTH = [
    ("--epochs 0", "'0' is not an integer of 1 or more"),
    pytest.param("--epochs " + 400 * "9", "9' is too large a number", id="epochs without end"),
    ("--epochs 2.5", "'2.5' is not an integer of 1 or more"),
    ("--epochs", "expected one argument"),
    ("--batch_size 0", "'0' is not an integer of 1 or more"),
    ("--learning_rate 0", "'0' is not a number above 0"),
    ("--learning_rate 1e308", "'1e308' is too large a number"),
    ("--learning_rate fast", "'fast' is not a number above 0"),
    ("--lr_decay_epochs 150,x", "'150,x' is not a list of increasing epochs, such as 150,180,210"),
    ("--lr_decay_epochs 180,150", "is not a list of increasing epochs"),
    ("--lr_decay_epochs 0,3", "is not a list of increasing epochs"),
    ("--lr_decay_rate -1", "'-1' is not a number above 0 and up to 1"),
    ("--wram_up -1", "'-1' is not an integer of 0 or more"),
    ("--momentum 1", "'1' is not a number from 0 to below 1"),
    ("--weight_decay -1", "'-1' is not a number of 0 or more"),
    ("--seed one", "'one' is not an integer of 0 or more"),
    ("--device gpu", "choose from"),
    ("--resume maybe", "choose from"),
    ("--save_dir {files}/empty.pth/save", "give another --save_dir"),
    ("--dataset cifar100 --data_dir {files}/empty.pth/data", "not writable"),
    ("--imbalance 0", "'0' is not a number above 0 and up to 1"),
    ("--label_noise 1", "'1' is not a number from 0 to below 1"),
    ("--image_size 64", "--image_size is a flag of folder, imagenet: digits has no use for it"),
    ("--dataset folder --data_dir {files} --image_size 100000", "--image_size 100000 is too large: give at most 2048"),
    ("--dataset folder --data_dir {files}", "train does not exist: --data_dir takes a folder that holds train/CLASS"),
    *([] if torch.cuda.is_available() else [("--device cuda", "use --device cpu")]),
]
TEACHER = [("--model resnet9", "choose from"), ("--trial one", "'one' is not an integer of 0 or more"),
           ("--distill kd", "--distill is not understood"), ("-t -1", "'-1' is not an integer of 0 or more")]


def refuse(script, given, flags, says, files, folder):
    text = [*given, *flags.format(files=files).split()]
    where = ["--save_dir", folder / "save", "--data_dir", folder / "data"]
    process = scripts.run(script, *where, *text)
    assert process.returncode == 2, process.stdout + process.stderr
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr
    assert says in process.stderr
    assert process.stdout == "" and not any(path.is_file() for path in folder.rglob("*"))


@pytest.mark.parametrize("flags, says", STUDENT + BOTH)
def test_train_student_refuses(flags, says, files, tmp_path):
    good = ["--path_t", files / "resnet8_vanilla/good.pth", "--dataset", "digits"]
    refuse("train_student.py", good, flags, says, files, tmp_path)


@pytest.mark.parametrize("flags, says", TEACHER + BOTH)
def test_train_teacher_refuses(flags, says, files, tmp_path):
    refuse("train_teacher.py", ["--model", "resnet8", "--dataset", "digits"], flags, says, files, tmp_path)


def test_a_missing_teacher_is_asked_for(tmp_path):
    refuse("train_student.py", [], "", "--path_t is missing: give a teacher's checkpoint", tmp_path, tmp_path)


def test_the_good_command_is_taken(files, tmp_path):
    scripts.succeed("train_student.py", "--path_t", files / "resnet8_vanilla/good.pth", "--dataset", "digits",
                    "--epochs", 1, "--batch_size", 256, "--save_dir", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_largest_and_smallest_numbers_train_or_end_with_one_line(method, files, tmp_path):
    flags = ["--path_t", files / "resnet8_vanilla/good.pth", "--dataset", "digits", "--imbalance", 0.005, "--distill",
             method, "--epochs", 2, "--warm_up", 0, "--lr_decay_epochs", 1, "--init_epochs", 1, "--avg", 1]
    for action in cli._student_parser(METHODS[method])._actions:
        if action.type in (arguments.positive_float, arguments.nonnegative_float, arguments.up_to_one):
            for number in (1e-15, 1e15):
                process = scripts.run("train_student.py", *flags, action.option_strings[0], number, "--save_dir",
                                      tmp_path / f"{action.dest}{number}")
                ended = process.returncode, process.stderr
                assert "Traceback" not in process.stdout and ended[1].count("\n") == (ended[0] != 0), (action, ended)
                assert ended[0] in (0, 1, 2) and ended[1].startswith("error: " if ended[0] else ""), (action, ended)
