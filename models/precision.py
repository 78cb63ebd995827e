"""In what numbers the networks run: float32, or bfloat16 with float32 losses; in which memory format."""
from argparse import Namespace
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from helper.util.nested import each
from models import Classifier, Outputs
from models._folded import folded


@dataclass(frozen=True)
class Precision:
    """How a network is run on a device.

    bf16: under autocast, so convolutions and products in bfloat16; weights, BN statistics and every
        loss stay in float32
    channels_last: the images and the weights of convolutions in that memory format
    compiled: through torch.compile, which fuses operations and so changes the last bits; then the losses and the meters
        of training are too
    """

    bf16: bool = False
    channels_last: bool = False
    compiled: bool = False

    def prepare(self, network: Classifier) -> Classifier:
        """The network in the memory format, to be compiled when it first runs; its state dict has the same values."""
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
        if self.compiled:
            network.compile()
        return network

    def frozen(self, network: Classifier, images: Tensor) -> Classifier:
        """A network that is never trained, prepared; in bfloat16 it is a copy with its batch norms folded, whose
        convolutions have bfloat16 weights, so that no pass rounds them anew. images: as _folded.folded."""
        if self.bf16:
            network = folded(network, images)
            for module in network.modules():
                if type(module) is nn.Conv2d:
                    module.bfloat16()
        return self.prepare(network)

    def outputs(self, network: Classifier, images: Tensor, fields: frozenset[str],
                strong: Tensor | None = None) -> Outputs:
        """The network's outputs that `fields` names, in float32; images (B, 3, height, width) float32.

        strong: the images of the second view, of which the field of that name is computed, by a pass of its own: batch
            norm sees each view by itself, as published
        """
        out = Outputs()
        if fields - {"strong"}:
            out = self._pass(network, images, "cam" in fields)
        if "strong" in fields:
            out = out._replace(strong=self._pass(network, strong, False).logits)
        kept = {name: getattr(out, name) for name in fields}
        return Outputs(**dict(zip(kept, each(Tensor.float, kept.values()), strict=True)))

    def _pass(self, network, images, cam):
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return network(images, named=True, cam=cam)

    def in_words(self, device: torch.device) -> str:
        """What a run says of it, as 'float32 with TF32 convolutions, channels_last'."""
        words = "bfloat16 networks, float32 losses" if self.bf16 else "float32"
        if device.type == "cuda" and torch.backends.cudnn.allow_tf32 and not self.bf16:
            words += " with TF32 convolutions"
        return words + ", channels_last" * self.channels_last + ", compiled" * self.compiled


FLOAT32 = Precision()
# The field that a test, and a method that reads the teacher's logits alone, asks `Precision.outputs` for.
LOGITS = frozenset({"logits"})


def precision_of(options: Namespace, device: torch.device) -> Precision:
    """What `--amp`, `--channels_last` and `--compile` ask for.

    `--fast` asks for the first two, as scripts/bench.py measured best on the CPU; bfloat16 only where there are units
    for it, and `--amp` says nothing else.
    """
    bf16 = options.amp == "bf16" or (options.amp == "auto" and options.fast and _has_bf16_units(device))
    return Precision(bf16, options.channels_last or options.fast, options.compile and cannot_compile(device) is None)


@lru_cache
def cannot_compile(device: torch.device) -> str | None:
    """Why torch.compile does not work on a device, in a line, by trying it: it needs a C++ compiler, or Triton on
    CUDA. None where it does."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # of many kinds: whatever is missing
        return str(error).splitlines()[0]
    return None


def _has_bf16_units(device):
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
