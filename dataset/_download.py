"""Fetching a file: whole and as it should be, or not at all."""
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request

from dataset._base import DataError
from helper.util.progress import progress

ATTEMPTS = 3
# Seconds without a byte after which a connection is given up.
TIMEOUT = 30


def download(url: str, path: str, md5: str) -> None:
    """Bring `url` to the file `path`, whose MD5 must be `md5`.

    A connection that breaks is taken up again where it broke, ATTEMPTS times; what has come by then stays in
    `path`.partial, where the next call goes on. Raises DataError, with the reason, where the file cannot be had.
    """
    partial = path + ".partial"
    for attempt in range(ATTEMPTS):
        try:
            _go_on(url, partial)
            break
        except urllib.error.HTTPError as error:
            raise DataError(f"{url} answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if attempt == ATTEMPTS - 1:
                kept = "; what has come is kept, and the same command goes on" if _size(partial) else ""
                raise DataError(f"{url}: {_line(reason)}{kept}") from None
            print(f"{url}: {_line(reason)}; trying again", flush=True)
    if _md5(partial) != md5:
        os.remove(partial)
        raise DataError(f"what {url} sends is not the file meant (its MD5 is not {md5}), and was removed")
    os.replace(partial, path)


def _go_on(url, partial):
    """Append to `partial` what it lacks. Raises OSError and HTTPException for the network, DataError for the disk."""
    start = _size(partial)
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {}), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond what is here: it is all of it, or never was part of it
            return
        raise
    with response:
        continues = re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")) is not None
        start = start if continues else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        done = start
        with (_writing(partial, "ab" if continues else "wb") as file,
              progress(f"fetching {os.path.basename(url)}", total, start, "B", unit_scale=True) as bar):
            while chunk := response.read(1 << 18):
                _write(file, chunk)
                done += len(chunk)
                bar.update(len(chunk))
    if total is not None and done < total:
        raise OSError(f"the connection broke after {done:,} of {total:,} bytes")


def _writing(path, mode):
    try:
        return open(path, mode)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def _write(file, chunk):
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise DataError(f"cannot write {file.name}: {error.strerror}; what has come is kept") from None


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def _md5(path):
    digest = hashlib.md5()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _line(error):
    return " ".join(str(error).split()) or type(error).__name__
