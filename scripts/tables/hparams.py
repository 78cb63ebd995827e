"""TensorBoard's HPARAMS page for the runs of a table: their settings beside their scalars, trials as one group."""
import io
import json
import os
from pathlib import Path

from helper.util.files import write_bytes
from scripts.tables.aggregate import Row, name_in

# Sorts before the files of scalars, so that TensorBoard reads both.
FILE = "events.out.tfevents.0.hparams"


def write_hparams(rows: list[Row]) -> list[Path]:
    """Into each finished run's folder of scalars: pair, method and settings, and its last and best accuracy.

    The trials of a row are one group, whose accuracies TensorBoard averages. The file is replaced, so that it may
    be written again. Returns the files written.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    def told(tag, **content):
        data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
        value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
        return Summary(value=[value])

    files = []
    for row in rows:
        for record in row.records:
            folder = record.folder.parent.parent / "student_tensorboards" / record.name
            if not folder.is_dir():  # the scalars were deleted: nothing to stand beside
                continue
            time = os.path.getmtime(record.folder / "result.json")
            start = plugin_data_pb2.SessionStartInfo(
                group_name=f"{row.pair} {name_in(row, rows)}", start_time_secs=time - record.result["seconds"])
            for key, value in _hparams(record).items():
                field = "bool_value" if isinstance(value, bool) else (
                    "number_value" if isinstance(value, (int, float)) else "string_value")
                setattr(start.hparams[key], field, value)
            end = plugin_data_pb2.SessionEndInfo(status="STATUS_SUCCESS", end_time_secs=time)
            scalars = [Summary.Value(tag=f"result/{name}_top1", simple_value=record.result[name]["top1"])
                       for name in ("last", "best")]
            events = [Event(wall_time=time, file_version="brain.Event:2"),
                      Event(wall_time=time, summary=told(metadata.SESSION_START_INFO_TAG, session_start_info=start)),
                      Event(wall_time=time, summary=Summary(value=scalars), step=record.result["last"]["epoch"]),
                      Event(wall_time=time, summary=told(metadata.SESSION_END_INFO_TAG, session_end_info=end))]
            content = io.BytesIO()
            writer = RecordWriter(content)
            for event in events:
                writer.write(event.SerializeToString())
            path = folder / FILE
            write_bytes(str(path), content.getvalue())
            files.append(path)
    return files


def _hparams(record):
    """What TensorBoard can hold: numbers, truth values and texts."""
    plain = {"pair": record.pair, "method": record.method, "teacher_accuracy": record.result["teacher_top1"]}
    for key, value in record.identity.items():
        if key != "teacher_top1":
            plain[key] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return plain
