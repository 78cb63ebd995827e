"""Export a checkpoint's network alone, as safetensors and as ONNX, with a card of what it is and what it scores.

python scripts/export.py save/models/resnet56_vanilla/ckpt_epoch_240.pth --out resnet56

The ONNX file takes batches of any size; it is run by onnxruntime, and the export fails where a logit differs from
PyTorch's by more than ATOL + RTOL·|logit|. Every line of the card comes from the data, the files or this run.
"""
import hashlib
import io
import json
import os
import shlex
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

import torch
from torch import Tensor

from dataset import Data
from helper.cli import Parser
from helper.evaluation import Predictions, predict
from helper.record.run import RESUME_IGNORED_OPTIONS
from helper.util.errors import RunError, UsageError, guarded, printable
from helper.util.files import write_bytes
from models import Classifier
from scripts.analysis import cost, metrics
from scripts.analysis.checkpoint import LoadedCheckpoint, add_flags, need, open_checkpoint, say
from scripts.pages import markdown, render

ATOL, RTOL = 1e-4, 1e-4
CHECKED = 512


def main():
    options = options_of(sys.argv[1:])
    need("scripts/export.py", "safetensors", "onnx", "onnxscript", "onnxruntime")
    loaded, data, device = open_checkpoint(options)
    test = data.test_images(device)
    say(f"{loaded.path}: {loaded.network.name} goes to {options.out} as safetensors and ONNX; measured on the "
        f"{len(test):,} test images of {data.name}, {device.type}")
    predictions = predict(loaded.network, test, options.batch_size)
    network, images = loaded.network.cpu(), next(test.batches(CHECKED))[0].cpu()
    exported = onnx_of(network, images)
    difference = check_onnx(exported, network, images)
    stem = network.name.replace(":", "_")  # a colon is not allowed in file names everywhere
    files = {f"{stem}.safetensors": safetensors_of(network, data), f"{stem}.onnx": exported}
    text = card(loaded, data, predictions, files, difference, len(images))
    os.makedirs(options.out, exist_ok=True)
    for name, content in (files | {"README.md": text.encode(errors="backslashreplace")}).items():
        write_bytes(os.path.join(options.out, name), content)
        print(f"{printable(os.path.join(options.out, name))}  {len(content):,} bytes")


def options_of(argv):
    parser = Parser(prog="export.py", description="Export a checkpoint's network as safetensors and ONNX, with a card.")
    add_flags(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="where the files go")
    options = parser.parse_args(argv)
    existing = Path(options.out).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--out {options.out}: {existing} cannot be written to; give another folder")
    return options


def safetensors_of(network: Classifier, data: Data) -> bytes:
    """The state dict in the safetensors format; what the logits and the pixels mean is in its metadata."""
    from safetensors.torch import save
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in network.state_dict().items()}
    return save(tensors, {"format": "pt", "model_name": network.name, "dataset": data.name,
                          "classes": json.dumps(data.classes), "mean": json.dumps(data.mean),
                          "std": json.dumps(data.std)})


def onnx_of(network: Classifier, images: Tensor) -> bytes:
    """The network as an ONNX model from `images` (batch, 3, height, width) to `logits` (batch, classes), batch free.

    Raises RunError where PyTorch's exporter does not support the network.
    """
    # The exporter remarks on itself, on both outputs.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            # Two images: the exporter would take a batch of one for a constant.
            program = torch.onnx.export(
                network, (images[:1].repeat(2, 1, 1, 1),), dynamo=True, verbose=False, external_data=False,
                input_names=["images"], output_names=["logits"],
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
        except torch.onnx.OnnxExporterError as error:
            raise RunError(f"PyTorch cannot export {network.name} as ONNX with a free batch size, so nothing is "
                           f"written: update torch and onnxscript ({str(error.__cause__ or error)[:200]})") from None
    assert program is not None  # None is what the old exporter returns
    return program.model_proto.SerializeToString()


def check_onnx(exported: bytes, network: Classifier, images: Tensor) -> float:
    """The largest difference of a logit between onnxruntime and PyTorch, for the first image alone and for all.

    Raises RunError if one is beyond ATOL + RTOL·|logit|.
    """
    import onnxruntime
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in (images[:1], images):
        with torch.inference_mode():
            expected = network(batch)
        found = torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])
        difference = (found - expected).abs()
        if not (difference <= ATOL + RTOL * expected.abs()).all():
            raise RunError(f"onnxruntime's logits differ from PyTorch's by up to {difference.max().item():.2g}, more "
                           f"than {ATOL:g} + {RTOL:g}·|logit|: nothing is written; update onnxruntime and torch")
        largest = max(largest, difference.max().item())
    return largest


def card(loaded: LoadedCheckpoint, data: Data, predictions: Predictions, files: dict[str, bytes], difference: float,
         checked: int) -> str:
    """The README.md of an export; checked: how many images `difference` was measured on."""
    network, (weights, model) = loaded.network, files
    _, height, width = data.image_shape
    said = loaded.checkpoint
    stated = [f"epoch {said.epoch}"] if said.epoch is not None else []
    stated += [f"accuracy {said.accuracy:.2f}"] if said.accuracy is not None else []
    return render(
        "card.md", name=network.name, data=data, height=height, width=width, weights=weights, model=model,
        parameters=cost.parameters(network), flops=cost.flops(network, torch.zeros(1, 3, height, width)),
        digests={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        test=metrics.summary(predictions.logits, predictions.labels), bins=metrics.BINS, date=time.strftime("%Y-%m-%d"),
        torch=torch.__version__, command=shlex.join(["python", *sys.argv]), stated=stated, checked=checked,
        difference=difference, tolerance=f"{ATOL:g} + {RTOL:g}·|logit|", record=loaded.record,
        settings={key: in_words(value) for key, value in loaded.settings.items() if key not in RESUME_IGNORED_OPTIONS},
        result={key: in_words(value) for key, value in ((loaded.record and loaded.record.result) or {}).items()})


def in_words(value) -> str:
    """A value of args.json or result.json in a cell of a Markdown table."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(v)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    return markdown(f"{value:.6g}" if isinstance(value, float) else str(value))


if __name__ == "__main__":
    guarded(main)
