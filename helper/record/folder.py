"""A run's folder, which one process at a time holds."""
import contextlib
import json
import os
import shutil
from typing import Any

from helper.util import files
from helper.util.errors import RunError, UsageError


class RunFolder:
    """Whole reads and writes of the files of a run, in the folder that this process has locked.

    Raises UsageError where the folder cannot be written, or is another process's.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            os.makedirs(path, exist_ok=True)
            self.lock = files.lock_folder(path)
        except OSError as error:
            raise UsageError(f"cannot write to {path} ({error.strerror}): give another --save_dir") from None
        files.remove_partials(path)

    def __truediv__(self, name: str) -> str:
        return os.path.join(self.path, name)

    def has(self, name: str) -> bool:
        return os.path.exists(self / name)

    def read_json(self, name: str) -> dict | None:
        """A file's object, None where there is no such file. Raises UsageError where it is damaged."""
        def parse(file):
            content = json.load(file)
            if not isinstance(content, dict) or not content:
                raise ValueError("not an object")
            return content

        return self._read(name, parse)

    def read_torch(self, name: str) -> dict | None:
        """As read_json, of what write_torch wrote; every byte is checked against the file's checksums."""
        return self._read(name, files.read_torch)

    def write(self, name: str, content: Any) -> None:
        """Write a file whole: an object as .json, tensors and plain data as .pth, else bytes.

        Raises OSError, RunError where the folder is no longer this process's.
        """
        self._check_lock()
        how = {".json": files.write_json, ".pth": files.write_torch}.get(os.path.splitext(name)[1], files.write_bytes)
        how(self / name, content)

    def remove(self, name: str) -> None:
        """Remove a file. Raises as write."""
        self._check_lock()
        os.remove(self / name)

    def clear(self) -> None:
        """Remove all but the lock."""
        for entry in list(os.scandir(self.path)):
            if entry.name != files.LOCK:
                (shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.remove)(entry.path)

    def _read(self, name, load):
        if not self.has(name):
            return None
        try:
            with open(self / name, "rb") as file:
                return load(file)
        except (ValueError, RecursionError, files.Damaged):
            raise UsageError(f"{self / name} is damaged: bring it back from a copy, "
                             "or give --overwrite to start anew") from None

    def _check_lock(self):
        """A folder whose lock was removed may be another process's by now."""
        path = self / files.LOCK
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(self.lock.fileno())):
                return
        raise RunError(f"{path} was removed or replaced while this run held it, so another process may train in its "
                       "folder: nothing more is written; give the same command to continue, once no other runs")
