"""Files that appear whole or not at all, and folders that one process holds."""
import contextlib
import errno
import fcntl
import glob
import io
import json
import os
import resource
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

from helper.util.errors import UsageError

PARTIAL, LOCK = ".partial", ".lock"
# How a file of torch.save begins.
ZIP = b"PK\x03\x04"
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


def remove_partials(folder: str) -> None:
    """Remove what killed writers have left, from a folder whose only writer is the caller. Raises OSError."""
    for left_over in glob.glob(glob.escape(folder) + "/*" + PARTIAL):
        os.remove(left_over)


def write_bytes(path: str, content: bytes | memoryview) -> None:
    """Write a file as `whole` does. Raises OSError."""
    with whole(path) as file:
        file.write(content)


def write_json(path: str, content) -> None:
    """As write_bytes; indented, readable, plain JSON."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_torch(path: str, content) -> None:
    """As write_bytes; what read_torch reads, each record with its checksum."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """The file `path`, to be read. Raises OSError; also for a pipe or a device, whose bytes may never come or end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return open(handle, "rb")


class Damaged(Exception):
    """A file that read_torch cannot read; its cause is what the readers raised."""


def read_torch(file: BinaryIO) -> Any:
    """What torch.save has written to an open file, as far as it is tensors and plain data (weights_only), on the CPU.

    torch.save stores a checksum of each record, which torch.load does not look at: here it is verified, so that a
    flipped bit is noticed. Compressed records, which could unpack to any size, are refused; torch.save writes none.
    So is a file that asks for much more memory than it has bytes, as a crafted one can even without its own code.
    Raises Damaged for all of these and for a file that is not its own; OSError where the disk fails.
    """
    try:
        return _read_torch(file)
    # Broad on purpose: the readers raise what the bytes happen to provoke (KeyError, UnicodeDecodeError, struct.error,
    # MemoryError, ...; EINVAL from a place beyond the file).
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise Damaged from error


def _read_torch(file):
    size = os.fstat(file.fileno()).st_size
    if file.read(len(ZIP)) == ZIP:  # the former format has no checksums
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
            if not stored or sum(record.file_size for record in records) > size:
                raise zipfile.BadZipFile("its records are compressed or overlap")
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the record {damaged} does not match its checksum")
    file.seek(0)
    with _memory_limit(4 * size + 2**30):  # twice the weights while they are read, and some for the rest
        return torch.load(file, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """In the block, memory beyond `more` bytes in addition to today's is refused with an error; on Linux alone."""
    if not os.path.exists("/proc/self/statm"):
        yield
        return
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = min([now + more, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def lock_folder(folder: str, waiting: str | None = None):
    """Hold `folder` until the process ends or the returned file is closed.

    waiting: where another process holds it, print this and wait
    Raises UsageError if another process holds it and `waiting` is not given.
    """
    file = open(os.path.join(folder, LOCK), "a+")  # noqa: SIM115 (held by the caller)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            file.close()
            raise UsageError(f"another process is training in {folder}: wait for it, or give another --trial") from None
        print(waiting, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    return file
