"""What is computed once for a teacher and kept in a file: to save time, so that a run does without the file, too."""
import contextlib
import os
from collections.abc import Callable
from typing import Any

from helper.util import distributed
from helper.util.files import Damaged


def kept(path: str, compute: Callable[[], Any], read: Callable[[str], Any], write: Callable[[str, Any], None]) -> Any:
    """What `path` holds, on all processes; where it is not there yet or damaged, what all compute, which is kept there.

    read: raises OSError, ValueError, TypeError or Damaged where the file does not hold it
    """
    def held():
        with contextlib.suppress(OSError, ValueError, TypeError, Damaged):
            return read(path)

    found = distributed.broadcast_from_rank0(held)
    if found is None:
        found = compute()
        with contextlib.suppress(OSError):
            if distributed.rank() == 0:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                write(path, found)
    return found
