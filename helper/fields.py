"""What is done to every tensor of a Batch or of Outputs: their fields are tensors, tuples of tensors, or None."""
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor


def each(change: Callable[[Tensor], Tensor], fields: Iterable) -> list:
    """The fields with every tensor changed, to build another Batch or Outputs of."""
    return [None if f is None else change(f) if isinstance(f, Tensor) else tuple(each(change, f)) for f in fields]


def tensors(fields: Iterable) -> Iterator[Tensor]:
    """All tensors, in order."""
    for field in fields:
        if isinstance(field, Tensor):
            yield field
        elif field is not None:
            yield from tensors(field)
