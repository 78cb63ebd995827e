"""Data sets that are fetched into their folder: by one process at a time, whole or not at all."""
import os
from contextlib import AbstractContextManager, nullcontext

from dataset._base import DataError
from helper.util.download import DownloadError, download
from helper.util.files import lock_folder


def held(root: str, title: str) -> AbstractContextManager:
    """Lock the data folder `root`, created if missing, while this process prepares `title` there.

    A read-only folder is not locked: nothing will be written there. Raises DataError where it cannot be created.
    """
    try:
        os.makedirs(root, exist_ok=True)
        return lock_folder(root, waiting=f"another process is preparing {title} in {root}: waiting")
    except OSError as error:
        if os.path.isdir(root):
            return nullcontext()
        raise DataError(f"the data folder {root} is not writable ({error.strerror}): give another --data_dir") from None


def fetch(title: str, url: str, root: str, md5: str, limit: int, folder: str) -> None:
    """Bring the archive at `url` into `root`, under its own name, or make sure that it is the one there.

    limit: the size in bytes above which it is refused; folder: what may be there instead of it, for the message
    Raises DataError where it cannot be fetched, or is not the archive meant.
    """
    import pooch  # imported late: it takes a tenth of a second

    path = os.path.join(root, os.path.basename(url))
    if os.path.lexists(path):
        if pooch.file_hash(path, "md5") != md5:
            raise DataError(f"{path} is damaged or another file: move it away, and the same command fetches it")
        return
    print(f"{title} is not in {root}: fetching {url}", flush=True)
    try:
        download(url, path, limit, f"md5:{md5}")
    except (DownloadError, PermissionError) as error:
        raise DataError(f"{title} is not in {root} and cannot be fetched ({error}): put {os.path.basename(url)} or the "
                        f"folder {folder} into {root} (--data_dir)") from None
