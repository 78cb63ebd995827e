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

import torch
from torch import Tensor, nn

from dataset import Data
from helper.cli import Parser
from helper.evaluation import predict
from helper.record.run import RESUME_IGNORED_OPTIONS
from helper.util.errors import RunError, UsageError, guarded
from helper.util.files import write_bytes
from scripts.analysis import cost, metrics
from scripts.analysis.checkpoint import LoadedCheckpoint, add_flags, need, open_subject, say

ATOL, RTOL = 1e-4, 1e-4
CHECKED = 512


def main():
    options = options_of(sys.argv[1:])
    need("scripts/export.py", "safetensors", "onnx", "onnxscript", "onnxruntime")
    subject, data, device = open_subject(options)
    say(f"{subject.path}: {subject.network.name} goes to {options.out} as safetensors and ONNX; measured on the "
        f"{len(data.test):,} test images of {data.name}, {device.type}")
    test = data.test_images(device)
    predictions = predict(subject.network, test, options.batch_size)
    network, images = subject.network.cpu(), next(data.test_images(torch.device("cpu")).batches(CHECKED))[0]
    exported = onnx_of(network, images)
    difference = check_onnx(exported, network, images)
    files = {f"{network.name}.safetensors": safetensors_of(network, data), f"{network.name}.onnx": exported}
    text = card(subject, data, predictions, files, difference, min(CHECKED, len(test)))
    os.makedirs(options.out, exist_ok=True)
    for name, content in (files | {"README.md": text.encode()}).items():
        write_bytes(os.path.join(options.out, name), content)
        print(f"{os.path.join(options.out, name)}  {len(content):,} bytes")


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


def safetensors_of(network: nn.Module, data: Data) -> bytes:
    """The state dict in the safetensors format; what the logits and the pixels mean is in its metadata."""
    from safetensors.torch import save
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    return save(tensors, {"format": "pt", "model_name": network.name, "dataset": data.name,
                          "classes": json.dumps(data.classes), "mean": json.dumps(data.mean),
                          "std": json.dumps(data.std)})


def onnx_of(network: nn.Module, images: Tensor) -> bytes:
    """The network as an ONNX model from `images` (batch, 3, height, width) to `logits` (batch, classes), batch free."""
    # The exporter remarks on itself, on both outputs.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (images[:2],), dynamo=True, verbose=False, external_data=False, input_names=["images"],
            output_names=["logits"], dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    return program.model_proto.SerializeToString()


def check_onnx(exported: bytes, network: nn.Module, images: Tensor) -> float:
    """The greatest difference of a logit between onnxruntime and PyTorch, for the first image alone and for all.

    Raises RunError if one is beyond ATOL + RTOL·|logit|.
    """
    import onnxruntime
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    greatest = 0.0
    for batch in (images[:1], images):
        with torch.inference_mode():
            expected = network(batch)
        found = torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])
        difference = (found - expected).abs()
        if not (difference <= ATOL + RTOL * expected.abs()).all():
            raise RunError(f"onnxruntime's logits differ from PyTorch's by up to {difference.max().item():.2g}, more "
                           f"than {ATOL:g} + {RTOL:g}·|logit|: nothing is written; update onnxruntime and torch")
        greatest = max(greatest, difference.max().item())
    return greatest


def card(subject: LoadedCheckpoint, data: Data, predictions, files: dict[str, bytes], difference: float,
         checked: int) -> str:
    """The README.md of an export."""
    network, test = subject.network, metrics.summary(predictions.logits, predictions.labels)
    channels, height, width = data.test.images.shape[1:]
    weights, model = files
    flops = cost.flops(network, torch.zeros(1, channels, height, width))
    said = subject.checkpoint
    shape = f"{channels}, {height}, {width}"
    stated = [f"epoch {said.epoch}"] if said.epoch is not None else []
    stated += [f"accuracy {said.accuracy:.2f}"] if said.accuracy is not None else []
    return f"""\
# {network.name} on {data.name}

{network.name}, {cost.parameters(network):,} parameters, {flops / 1e6:,.1f} MFLOPs an image: from RGB images of \
{width}×{height} pixels to the logits of {len(data.classes)} classes.

| file | what | SHA-256 |
| --- | --- | --- |
| `{weights}` | the state dict | `{hashlib.sha256(files[weights]).hexdigest()}` |
| `{model}` | float32 `images` (batch, {shape}) → `logits` (batch, {len(data.classes)}), any batch \
| `{hashlib.sha256(files[model]).hexdigest()}` |

## Measured

On the {test.images:,} test images of {data.name}, {time.strftime("%Y-%m-%d")}, PyTorch {torch.__version__}, float32, by

    {shlex.join(["python", *sys.argv])}

| top-1 | top-5 | NLL | ECE ({metrics.BINS} bins) |
| ---: | ---: | ---: | ---: |
| {test.top1:.2f} | {test.top5:.2f} | {test.nll:.4f} | {test.ece:.4f} |

The checkpoint itself states {" and ".join(stated) or "neither an epoch nor an accuracy"}. On the first \
{checked:,} test images the greatest difference between a logit of onnxruntime and PyTorch's is {difference:.1e} (the \
export fails beyond {ATOL:g} + {RTOL:g}·|logit|).

## Images and classes

Pixels are scaled from 0..255 to [0, 1]; then, by channel, the mean {list(data.mean)} is subtracted, and the rest
divided by {list(data.std)}. The logits' classes, in order:

{", ".join(data.classes)}

## How it was trained

{trained(subject)}
## Load it

With PyTorch, from the root of this exporter's repository, FOLDER being the folder of this file:

```python
from safetensors.torch import load_file
from models import model_dict

network = model_dict["{network.name}"](num_classes={len(data.classes)})
network.load_state_dict(load_file("FOLDER/{weights}"))
network.eval()
```

With onnxruntime, `pixels` being a NumPy array (batch, {shape}) of 0..255:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/{model}")
mean, std = (np.float32(x).reshape(1, {channels}, 1, 1) for x in ({list(data.mean)}, {list(data.std)}))
images = (np.float32(pixels) / 255 - mean) / std
(logits,) = session.run(["logits"], {{"images": images}})
```
"""


def trained(subject: LoadedCheckpoint) -> str:
    """What the run's args.json and result.json say, in Markdown."""
    args, result = subject.record.args, subject.record.result
    if not args:
        return "The checkpoint lies in no folder of a run: nothing is known here of its training.\n"
    lines = []
    if "command" in args:
        lines += [f"Begun {args.get('started')} at commit {args.get('commit')} by", "", f"    {args['command']}", ""]
    if "loss" in args.get("facts", {}):
        lines += [f"Loss: {args['facts']['loss']}", ""]
    if result:
        lines += [*_rows("of the run", result), ""]
    settings = {key: value for key, value in subject.record.settings.items() if key not in RESUME_IGNORED_OPTIONS}
    return "\n".join([*lines, *_rows("setting", settings)]) + "\n"


def _rows(head, values):
    return [f"| {head} | |", "| --- | --- |",
            *(f"| {key} | {_words(value)} |".replace("\n", " ") for key, value in values.items())]


def _words(value):
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(v)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")


if __name__ == "__main__":
    guarded(main)
