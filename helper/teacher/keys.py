"""What a cache's content depends on, as one key."""
import hashlib

import torch
from torch import Tensor

from dataset import Data, Split
from dataset.views import PADDING
from models import Classifier

# Stands for the code: how a view is cut and numbered, how rows are laid out.
FORMAT = 3


def arithmetic(device: torch.device) -> str:
    """The arithmetic of the teacher's forward pass: "float32", or "tf32" on CUDA devices where that is on."""
    tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return "tf32" if device.type == "cuda" and tf32 else "float32"


def key_of(network: Classifier, data: Data, dtype: str, precision: str) -> str:
    """SHA-256, in hexadecimal, of everything that a cache's content depends on."""
    assert isinstance(data.train, Split)
    return fingerprint(network.state_dict(), data.train.images, FORMAT, network.name, data.mean, data.std,
                       data.flip, PADDING, dtype, precision)


def fingerprint(*values) -> str:
    """SHA-256, in hexadecimal, of tensors, dicts of tensors, and values with a stable repr."""
    digest = hashlib.sha256()
    for value in values:
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(part, Tensor):
                part = part.detach().cpu().contiguous()
                digest.update(repr((name, str(part.dtype), tuple(part.shape))).encode())
                digest.update(part.reshape(-1).view(torch.uint8).numpy().data)
            else:
                digest.update(repr((name, part)).encode())
    return digest.hexdigest()
