"""TensorBoard's HPARAMS page for the runs of a table: their settings beside their scalars, trials as one group."""
import json

from helper.record.naming import scalars_folder
from scripts.tables.aggregate import Row

SUFFIX = ".hparams"


def write_hparams(rows: list[Row]) -> None:
    """Into each finished run's folder of scalars: pair, method and settings, and its last and best accuracy.

    The trials of a row are one group, whose accuracies TensorBoard averages. A file written before is replaced.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams, scalar
    from torch.utils.tensorboard.writer import FileWriter

    for row in rows:
        for record in row.records:
            folder = record.folder.parent.parent / "student_tensorboards" / scalars_folder(record.name, record.settings)
            if not folder.is_dir():  # the scalars were deleted: nothing to stand beside
                continue
            for before in folder.glob(f"*{SUFFIX}"):
                before.unlink(missing_ok=True)  # another command may report on the same runs
            metrics = {f"result/{name}_top1": record.final[name]["top1"] for name in ("last", "best")}
            experiment, start, end = hparams(_settings(record), metrics)
            held = HParamsPluginData.FromString(start.value[0].metadata.plugin_data.content)
            held.session_start_info.group_name = f"{row.pair} {row.name}"
            start.value[0].metadata.plugin_data.content = held.SerializeToString()
            writer = FileWriter(str(folder), filename_suffix=SUFFIX)
            for summary in (experiment, start, end, *(scalar(name, value) for name, value in metrics.items())):
                writer.add_summary(summary, record.final["last"]["epoch"])
            writer.close()


def _settings(record):
    """What TensorBoard can hold: numbers, truth values and texts."""
    plain = {"pair": record.pair, "method": record.method, "teacher_accuracy": record.final["teacher_top1"]}
    return plain | {key: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
                    for key, value in record.identity.items() if key != "teacher_top1"}
