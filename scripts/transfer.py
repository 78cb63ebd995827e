"""How well a network's features transfer: a linear classifier on them, trained for another data set (linear probe).

python scripts/transfer.py save/student_model/RUN/resnet20_last.pth --dataset stl10
python scripts/transfer.py CHECKPOINT --dataset folder --data_dir flowers --json probe.json

The network is frozen. Its pooled vectors are computed once, of the images as they are (no augmentation), brought to the
size and the normalisation that the network was trained with; then one linear layer is trained on those of the training
images and tested on the others. After Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020,
section 4.1, which takes STL-10 and Tiny-ImageNet at 32x32 pixels for students of CIFAR-100.
"""
import dataclasses
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dataset
from dataset import Data, Samples
from helper.cli import Parser
from helper.device import open_device
from helper.evaluation import predict
from helper.meters import count_correct
from helper.util.arguments import nonnegative_float, positive_int
from helper.util.errors import RunError, UsageError, guarded, printable
from helper.util.progress import progress
from models.checkpoint import names_weights
from scripts.analysis.checkpoint import LoadedCheckpoint, add_flags, add_json_flag, give, load, load_data, say


def main():
    options = options_of(sys.argv[1:])
    started, device = time.perf_counter(), open_device(options)
    loaded = load(options.checkpoint, device)
    options.image_size = options.image_size or loaded.settings.get("image_size") or 32
    data = load_data(options.dataset, options, loaded)
    say(f"{loaded.path}: {loaded.network.name}, frozen, on {data.name} ({len(data.train):,} training and "
        f"{len(data.test):,} test images, {len(data.classes)} classes) at {options.image_size}×{options.image_size} "
        f"pixels, {device.type}")
    train, test = (features(loaded, samples, data, options, device) for samples in (data.train, data.test))
    layer = fit(*train, len(data.classes), options)
    found = {
        "checkpoint": loaded.path, "model": loaded.network.name, "dataset": data.name, "classes": len(data.classes),
        "image_size": options.image_size, "width": layer.in_features, "train_images": len(data.train),
        "test_images": len(data.test), "epochs": options.epochs, "weight_decay": options.weight_decay,
        "train": measured(layer, *train), "test": measured(layer, *test), "seconds": time.perf_counter() - started,
        "versions": {"torch": torch.__version__},
    }
    give(options.json, found, line(found))


def options_of(argv: list[str]) -> Namespace:
    parser = Parser(prog="transfer.py", description="A linear probe: how well a frozen network's features transfer.")
    add_flags(parser, "(required): where the features go", "32")
    parser.add_argument("--epochs", type=positive_int, default=100, metavar="N",
                        help="iterations of L-BFGS, each over all images")
    parser.add_argument("--weight_decay", type=nonnegative_float, default=1e-4, metavar="X",
                        help="on the layer's weights, not on its bias")
    add_json_flag(parser)
    options = parser.parse_args(argv)
    if options.dataset is None:
        raise UsageError("--dataset is missing: give the data set to transfer to, such as stl10")
    return options


def features(loaded: LoadedCheckpoint, samples: Samples, data: Data, options: Namespace,
             device: torch.device) -> tuple[Tensor, Tensor]:
    """The pooled vectors (N, width) of samples of the data set, and their labels (N,), on the device.

    Raises UsageError for a network that has no such vectors.
    """
    def resize(_, inputs):
        (images,) = inputs
        return F.interpolate(images, (options.image_size, options.image_size), mode="bilinear", antialias=True)

    mean, std = normalisation(loaded)
    images = samples.eval_data(dataclasses.replace(data, mean=mean, std=std), device)
    with loaded.network.register_forward_pre_hook(resize):
        found = predict(loaded.network, images, options.batch_size)
    if found.pooled is None:
        raise UsageError(f"{loaded.network.name} has no vector that a linear classifier reads: choose another network")
    return found.pooled.to(device), found.labels.to(device)


def normalisation(loaded: LoadedCheckpoint) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(mean, std) by channel of the images that the network was trained on: its run's, else CIFAR-100's; ImageNet's for
    a library's weights."""
    name = "imagenet" if names_weights(loaded.path) else loaded.settings.get("dataset", "cifar100")
    module = getattr(dataset, name if name in dataset.LOADERS else "cifar100")
    return module.MEAN, module.STD


def fit(vectors: Tensor, labels: Tensor, classes: int, options: Namespace) -> nn.Linear:
    """The linear layer, from vectors (N, width) to logits (N, classes), trained on the cross-entropy of labels (N,) by
    L-BFGS, without random numbers.

    It is trained on standardised vectors, and returned for the vectors as they are. Raises RunError where it diverges.
    """
    mean, deviation = vectors.mean(0), vectors.std(0).clamp(min=1e-6)
    layer = nn.Linear(vectors.shape[1], classes, device=vectors.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    standard = (vectors - mean) / deviation
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=options.epochs, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-6, tolerance_change=1e-10)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(standard), labels) + options.weight_decay / 2 * layer.weight.square().sum()
        loss.backward()
        bar.update()
        return loss

    with progress("the linear layer", options.epochs * 5 // 4, unit=" evaluations of the loss", file=sys.stderr) as bar:
        optimizer.step(closure)
        loss = closure()
    if not loss.isfinite():
        raise RunError("the loss of the linear layer is not finite: give another --weight_decay, or take another "
                       "checkpoint")
    with torch.no_grad():
        layer.weight /= deviation
        layer.bias.sub_(layer.weight @ mean)
    return layer


@torch.no_grad()
def measured(layer: nn.Linear, vectors: Tensor, labels: Tensor) -> dict[str, float]:
    """{"loss": mean cross-entropy, "top1", "top5": accuracy in percent}."""
    logits = layer(vectors)
    top1, top5 = (100 * count_correct(logits, labels).double() / len(labels)).tolist()
    return {"loss": F.cross_entropy(logits, labels).item(), "top1": top1, "top5": top5}


def line(found: dict) -> str:
    """The result in one line."""
    return (f"{printable(found['checkpoint'])} on {found['dataset']}: top-1 {found['test']['top1']:.2f}, top-5 "
            f"{found['test']['top5']:.2f} of {found['test_images']:,} test images (training images: top-1 "
            f"{found['train']['top1']:.2f}); {found['model']}, {found['width']} features at "
            f"{found['image_size']}×{found['image_size']}")


if __name__ == "__main__":
    guarded(main)
