"""Fetching a file: whole and as it should be, or not at all."""
import contextlib
import os
import shutil
import signal
import time

from helper.util.errors import UserError, printable
from helper.util.progress import progress

ATTEMPTS = 3
# Seconds between two attempts; seconds without a byte after which a connection is given up.
PAUSE = 2.0
TIMEOUT = 20.0
# Seconds in which a server must answer, and send each CHUNK bytes: one that dribbles would hold a run for weeks.
SLOW, CHUNK = 60.0, 1 << 18


class DownloadError(UserError):
    """A file that cannot be fetched; the message gives the address and the reason.

    unreachable: whether the server never answered, so that asking it for other files is of no use
    """

    same_everywhere = False  # each machine has its own connection

    def __init__(self, reason: str, unreachable: bool = False):
        super().__init__(printable(reason))
        self.unreachable = unreachable


def download(url: str, path: str, limit: int, known_hash: str | None = None) -> None:
    """Bring `url` to the file `path`, which appears whole or not at all.

    A connection that breaks, or a server that is overloaded, is tried again from the start, ATTEMPTS times in all. A
    redirect from https to http is refused, and so is a server that is very slow. Called from the main thread; the
    caller makes sure that no other process fetches to `path`.

    limit: the size in bytes above which it is given up; known_hash: as pooch takes it, such as "md5:90528d7c..."
    Raises DownloadError where the file cannot be fetched, OSError where it cannot be written.
    """
    import pooch  # imported late: it takes a tenth of a second
    import requests

    answered = False

    def receive(url, file, _):
        nonlocal answered
        with (_patience() as more,
              requests.get(url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"},
                           hooks={"response": _refuse_downgrade}) as response):
            answered = True
            response.raise_for_status()
            length = int(response.headers.get("Content-Length", 0)) or None
            _check_size(length or 0, limit)
            with (open(file, "wb") as output,
                  progress(f"fetching {os.path.basename(path)}", length, unit="B", unit_scale=True) as bar):
                done = 0
                for chunk in response.iter_content(CHUNK):
                    more()
                    done += len(chunk)
                    _check_size(done, limit)
                    output.write(chunk)
                    bar.update(len(chunk))

    pooch.get_logger().setLevel("ERROR")
    staging = f"{path}.fetching"
    for attempt in range(1, ATTEMPTS + 1):
        shutil.rmtree(staging, ignore_errors=True)  # also what a killed process has left
        try:
            os.replace(pooch.retrieve(url, known_hash, fname="file", path=staging, downloader=receive), path)
            return
        # Broad on purpose: requests, urllib3 and pooch raise what the bytes of the server happen to provoke.
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
                raise OSError(error.errno, error.strerror or str(error), path) from None
            reason, may_pass = _judged(error)
            unreachable = not answered and isinstance(error, (requests.ConnectionError, requests.Timeout))
            if attempt == ATTEMPTS or unreachable or not may_pass:
                raise DownloadError(f"{url}: {reason}", unreachable) from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        print(f"{printable(f'{url}: {reason}')}; trying again", flush=True)
        time.sleep(PAUSE)


@contextlib.contextmanager
def _patience():
    """The block has SLOW seconds, and as many again at each call of the function that it gets, else a ValueError."""
    def late(*_):
        raise ValueError(f"it sends less than {CHUNK / 1e3:.0f} kB in {SLOW:g} s, and is given up")

    def more():
        signal.setitimer(signal.ITIMER_REAL, SLOW)

    before = signal.signal(signal.SIGALRM, late)
    try:
        more()
        yield more
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _refuse_downgrade(response, **_):
    target = response.headers.get("Location", "")
    if response.is_redirect and response.url.startswith("https:") and target.lower().startswith("http:"):
        raise ValueError(f"it redirects from https to {target}, which is refused")


def _check_size(size, limit):
    if size > limit:
        raise ValueError(f"it sends more than {limit / 1e6:,.0f} MB, the limit for this file")


def _judged(error):
    """(What is wrong, in the words of the innermost error: those around it repeat addresses and names of classes;
    whether another attempt may succeed: the connection broke, or the server is overloaded or at fault)."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        return f"HTTP {status} {error.response.reason}", status >= 500 or status in (408, 429)
    broke = isinstance(error, (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError))
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"nothing came for {TIMEOUT:g} s", broke
    if "does not match the known hash" in str(error):
        return "what it sends is not the file meant (another checksum), and is not kept", False
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__, broke
