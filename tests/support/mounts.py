"""Folders that bind root too: read-only ones, and small disks. Where mounting is not permitted, a test is skipped."""
import contextlib
import os
import subprocess

import pytest


def _mount(*arguments):
    if os.geteuid() != 0 or subprocess.run(["mount", *arguments], capture_output=True).returncode != 0:
        pytest.skip("mounting is not permitted here")


@contextlib.contextmanager
def read_only(folder):
    """Nothing in `folder` can be written."""
    if os.geteuid() != 0:
        os.chmod(folder, 0o500)
        yield
        os.chmod(folder, 0o700)
        return
    _mount("--bind", folder, folder)
    _mount("-o", "remount,ro,bind", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def small_disk(folder, size):
    """A new `folder`, on a disk of its own of `size` bytes; the block gets a function that gives it another size."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield lambda size: _mount("-o", f"remount,size={size}", folder)
    finally:
        subprocess.run(["umount", folder], check=True)
