"""Whole runs on CUDA devices by the entry scripts."""
from tests.end_to_end.test_resume import assert_same, record
from tests.support import images, scripts
from tests.support.on_gpu import needs_gpu

pytestmark = needs_gpu
CUDA = ("--device", "cuda", "--deterministic", "--tf32", "off")


def test_steps_of_images_from_files_are_captured(tmp_path):
    """While other processes read and a thread pins memory: the bits are those of eager steps without either."""
    data = ("--dataset", "folder", "--data_dir", images.class_folders(tmp_path / "data", train=14), "--image_size", 32,
            "--batch_size", 16, *CUDA)
    scripts.succeed("train_teacher.py", "--model", "resnet8", "--epochs", 1, *data, "--save_dir", tmp_path)
    flags = ("--path_t", scripts.only(tmp_path / "models") / "resnet8_last.pth", *data, "--epochs", 5, "--avg", 1,
             "--warm_up", 0)
    runs = {}
    for name, way in (("captured", ["--num_workers", 2]), ("eager", ["--num_workers", 0, "--cuda_graph", "off"])):
        said = scripts.succeed("train_student.py", *flags, *way, "--save_dir", tmp_path / name).stdout
        assert ("one CUDA graph" in said) == (name == "captured") and "continuing eagerly" not in said
        runs[name] = record(scripts.only(tmp_path / name / "student_model"))
    assert_same(runs["captured"][0]["resnet8_last.pth"]["model"], runs["eager"][0]["resnet8_last.pth"]["model"])
    assert_same(runs["captured"][1], runs["eager"][1])
