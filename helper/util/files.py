"""Files that appear whole or not at all, and folders that one process holds."""
import contextlib
import fcntl
import io
import json
import os
import tempfile
import time
from collections.abc import Callable

import torch

from helper.util.errors import UsageError

PARTIAL = ".partial"
# What open() would take away from a new file's permissions, and mkstemp does not look at.
UMASK = os.umask(0o077)
os.umask(UMASK)


@contextlib.contextmanager
def whole(path: str):
    """A file to write in the block, at whose end it takes the place `path`; an error leaves what was there.

    It is written beside its place, brought to the disk, then renamed. Raises OSError.
    """
    # A name of its own for each writer: two that write one file do not meet.
    handle, partial = tempfile.mkstemp(PARTIAL, os.path.basename(path) + ".", os.path.dirname(path) or ".")
    try:
        with open(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~UMASK)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
    # The rename itself reaches the disk with the folder.
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_bytes(path: str, content: bytes) -> None:
    """Write a file as `whole` does. Raises OSError."""
    with whole(path) as file:
        file.write(content)


def write_json(path: str, content) -> None:
    """As write_bytes; indented, readable, plain JSON."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_torch(path: str, content) -> None:
    """As write_bytes; what torch.load(weights_only=True) reads."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


def lock_folder(folder: str):
    """Hold `folder` until the process ends or the returned file is closed.

    Raises UsageError if another process holds it.
    """
    file = _lock(folder)
    if file is None:
        raise UsageError(f"another process is training in {folder}: wait for it, or give another --trial")
    return file


def wait_for_folder(folder: str, stop: Callable[[], None], message: str):
    """As lock_folder, but where another process holds the folder print `message` once and wait for it.

    stop: called while waiting; may raise to give up
    """
    file = _lock(folder)
    if file is None:
        print(message, flush=True)
    while file is None:
        stop()
        time.sleep(0.2)
        file = _lock(folder)
    return file


def _lock(folder):
    """The open lock file, or None where another process holds it."""
    file = open(os.path.join(folder, ".lock"), "a+")  # noqa: SIM115 (held by the caller)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
