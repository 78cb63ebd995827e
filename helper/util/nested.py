"""What is done to every tensor of a Batch or of Outputs: their fields are tensors, tuples of them, or no tensors."""
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor


def each(change: Callable[[Tensor], Tensor], fields: Iterable) -> list:
    """The fields with every tensor changed, to build another Batch or Outputs of."""
    return [change(f) if isinstance(f, Tensor) else tuple(each(change, f)) if isinstance(f, tuple) else f
            for f in fields]


def tensors(fields: Iterable) -> Iterator[Tensor]:
    """All tensors, in order."""
    for field in fields:
        if isinstance(field, Tensor):
            yield field
        elif isinstance(field, tuple):
            yield from tensors(field)
