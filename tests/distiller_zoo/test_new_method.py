"""Adding a method is adding one file: the README's example, put into a copy of the repository."""
import shutil
import textwrap

from tests.support import scripts


def test_the_readmes_method_works_from_the_command_line(digits_teacher, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in ("models", "distiller_zoo", "dataset", "helper", "train_student.py"):
        source = scripts.ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
    text = (scripts.ROOT / "README.md").read_text()
    example = text.split("appear in `--help`:\n\n")[1].split("\nTrainable parts")[0]
    (copy / "distiller_zoo" / "mine.py").write_text(textwrap.dedent(example))

    shown = scripts.succeed("train_student.py", "--help", root=copy).stdout
    assert "mine        Me: " in shown
    shown = scripts.succeed("train_student.py", "--help", "mine", root=copy).stdout
    assert "--distill mine: Me, My Paper, 2026" in shown and "--my_T" in shown
    scripts.succeed("train_student.py", "--path_t", digits_teacher, "--distill", "mine", "--my_T", 3, "--avg", 1,
                    "-a", 0.5, "--dataset", "digits", "--imbalance", 0.01, "--batch_size", 32, "--epochs", 2,
                    "--warm_up", 0, "--save_dir", tmp_path, root=copy)
    first, second = scripts.read_log(scripts.only(tmp_path / "student_model"))
    assert set(first["losses"]) == {"ce", "mine", "kd", "ikd"} and second["losses"]["mine"] < first["losses"]["mine"]

    refused = scripts.run("train_student.py", "--path_t", digits_teacher, "--distill", "kd", "--my_T", 3, root=copy)
    assert refused.returncode == 2 and "--my_T is a flag of mine; flags of this method: --kd_T" in refused.stderr


def test_an_import_error_of_a_methods_file_is_not_swallowed(tmp_path):
    shutil.copytree(scripts.ROOT / "distiller_zoo", tmp_path / "distiller_zoo")
    for part in ("models", "dataset", "helper"):
        shutil.copytree(scripts.ROOT / part, tmp_path / part)
    shutil.copy(scripts.ROOT / "train_student.py", tmp_path)
    (tmp_path / "distiller_zoo" / "broken.py").write_text("import no_such_module\n")
    process = scripts.run("train_student.py", "--help", root=tmp_path)
    assert process.returncode != 0 and "no_such_module" in process.stderr
