"""Fetch the published teachers into save/models/NAME_vanilla/ckpt_epoch_240.pth.

python scripts/fetch_pretrained_teachers.py                      # all six
python scripts/fetch_pretrained_teachers.py resnet32x4 vgg13     # these two

Each teacher is asked for at its publisher's over https, then there over http, then in the mirror's archive.
What comes goes to a .partial file beside its place, from which a broken download resumes, in this run or the
next; it takes its place only after its network has loaded it strictly. Its SHA-256 is recorded beside it
(`sha256sum -c ckpt_epoch_240.pth.sha256` reads it) and holds from then on, for the file and for any other
that is fetched in its stead.

Nothing proves who sent what comes over http: a file of other weights with the right shapes would be taken.
Nothing in a file is executed, whoever sent it: it is read with weights_only.
"""
import argparse
import contextlib
import fcntl
import hashlib
import http.client
import importlib.util
import json
import os
import re
import ssl
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin, urlsplit

ROOT = Path(__file__).resolve().parent.parent
# A script's own folder is on the path, the repository's root is not.
sys.path.insert(0, str(ROOT))

from helper.util.arguments import nonnegative_float, positive_float, positive_int
from helper.util.progress import clock

TEACHERS = ("wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50")
FILE = "ckpt_epoch_240.pth"
PUBLISHER = "http://shape2prog.csail.mit.edu/repo"
MIRROR = "https://github.com/megvii-research/mdistiller/releases/download/checkpoints"
ARCHIVE = "cifar_teachers.tar"
CHUNK = 1 << 18
SUFFIX = ".partial"
KEPT = "what came so far is kept, and the same command goes on from there"


class LocalError(Exception):
    """A fault of this machine (a full disk, a missing permission): no other source can mend it."""


class Refused(Exception):
    """A source has no such file, or a wrong one: asking it again is of no use."""


class Dropped(Exception):
    """A source broke off, or never answered: it may be asked again.

    silent: not a byte came of what was asked for
    """

    def __init__(self, reason: str, silent: bool = False):
        super().__init__(reason)
        self.silent = silent


def main():
    options = parse(sys.argv[1:])
    console = Console()
    try:
        missing = fetch(options, console)
    except LocalError as error:
        missing = [str(error)]
    except KeyboardInterrupt:
        console.error(f"stopped; {KEPT}")
        sys.exit(130)
    for line in missing:
        console.error(line)
    sys.exit(1 if missing else 0)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line. (helper.cli's own takes seconds to import.)"""

    def error(self, message):
        self.exit(2, f"error: {message}\n")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="fetch_pretrained_teachers.sh", allow_abbrev=False,
        description="Fetch the published teachers into SAVE_DIR/models/NAME_vanilla/" + FILE,
    )
    parser.add_argument("teachers", nargs="*", type=teacher, metavar="NAME",
                        help="one of " + ", ".join(TEACHERS) + " (default: all six)")
    parser.add_argument("--save_dir", default="./save", metavar="DIR", help="(default %(default)s)")
    parser.add_argument("--publisher", type=address, default=PUBLISHER, metavar="URL",
                        help="holds NAME_vanilla/" + FILE + "; an http:// address is tried over https first "
                             "(default %(default)s)")
    parser.add_argument("--mirror", type=address, default=MIRROR, metavar="URL",
                        help=f"holds {ARCHIVE} (default %(default)s)")
    parser.add_argument("--timeout", type=positive_float, default=20.0, metavar="SECONDS",
                        help="a connection silent for so long is given up (default %(default)g)")
    parser.add_argument("--retries", type=positive_int, default=3, metavar="N",
                        help="attempts at a file, per source (default %(default)s)")
    parser.add_argument("--backoff", type=nonnegative_float, default=1.0, metavar="SECONDS",
                        help="pause before the second attempt, doubled before each further one (default %(default)g)")
    options = parser.parse_intermixed_args(argv)
    options.teachers = list(dict.fromkeys(options.teachers)) or list(TEACHERS)
    return options


def teacher(text: str) -> str:
    if text not in TEACHERS:
        raise argparse.ArgumentTypeError(f"'{text}' is not a published teacher: they are {', '.join(TEACHERS)}")
    return text


def address(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"'{text}' is not an address such as {PUBLISHER}")
    return text.rstrip("/")


def fetch(options, console) -> list[str]:
    """Get every teacher asked for; a line for each that is not in place at the end. Raises LocalError."""
    folder = Path(options.save_dir) / "models"
    if importlib.util.find_spec("torch") is None:
        raise LocalError(f"{sys.executable} has no PyTorch to check the teachers with: install requirements.txt, "
                         "or make .venv with sh scripts/quickstart.sh")
    with local(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        mirror = Mirror(options, console, folder)
        sources = [*publishers(options, console), mirror]
        missing = []
        for name in options.teachers:
            destination = folder / f"{name}_vanilla" / FILE
            try:
                if os.path.lexists(destination):
                    problem = present(name, destination, console)
                else:
                    problem = obtain(name, destination, sources, console)
            except LocalError as error:
                return [*missing, str(error)]  # the others would only meet it again
            if problem:
                missing.append(problem)
        mirror.leave(everything_in_place=not missing)
    return missing


def present(name, destination, console) -> str | None:
    """Check a file that is in place already; what is wrong with it, if anything is."""
    digest, known = sha256(destination), recorded(destination)
    if known is None:
        try:
            accuracy = strict_load(name, destination)
        except Refused as error:
            return f"{error}; it was not fetched by this script: move it away, then run this again"
        record(destination, digest)
        console.say(f"{name}: {destination} was there and is now recorded, {summary(digest, accuracy)}")
    elif digest != known:
        return (f"{destination} has changed since its SHA-256 was recorded: delete it and fetch it again "
                f"(if the change is meant, delete {record_of(destination).name} instead)")
    else:
        console.say(f"{name}: {destination} is in place, as recorded")
    return None


def obtain(name, destination, sources, console) -> str | None:
    """Try source after source; what was tried, if none had the file."""
    partial, tried = Partial(destination), []
    for source in sources:
        if source.down is None:
            try:
                source.bring(name, partial)
                accuracy = accept(name, partial, destination)
            except (Refused, Dropped) as fault:
                if isinstance(fault, Dropped) and fault.silent:
                    source.down = str(fault)
                    console.say(f"{source.title} is not available ({fault}): going on without it")
                else:
                    console.say(f"{name}: {source.title}: {fault}")
                tried.append(f"{source.title}: {fault}")
            else:
                console.say(f"{name}: {destination} from {source.title}, {summary(recorded(destination), accuracy)}")
                return None
        else:
            tried.append(f"{source.title}: {source.down}")
    return (f"{name} is missing ({'; '.join(tried)}): run this again, or get the file by hand, put it at "
            f"{destination} and run this to check it")


def accept(name, partial, destination) -> float | None:
    """Put what came in its place if it is what it should be; otherwise remove it and raise Refused."""
    try:
        accuracy = strict_load(name, partial.path)
        digest, known = sha256(partial.path), recorded(destination)
        if known not in (None, digest):
            raise Refused(f"its file has not the SHA-256 that is recorded in {record_of(destination)} "
                          "(to accept another file, delete that one)")
    except Refused as error:
        partial.discard()
        raise Refused(str(error).replace(str(partial.path), "what came")) from None
    partial.move_to(destination)
    record(destination, digest)
    return accuracy


def strict_load(name, path) -> float | None:
    """Load the file into its network, which must take it exactly; the accuracy it claims. Raises Refused."""
    from models import CheckpointError, load_model  # seconds, which a run with nothing to check does not need

    try:
        return load_model(path, model_name=name, num_classes=100)[1].accuracy
    except CheckpointError as error:
        raise Refused(str(error)) from None


def summary(digest, accuracy) -> str:
    claim = f", accuracy {accuracy:.2f} as recorded in it" if accuracy is not None else ""
    return f"loads strictly{claim}, SHA-256 {digest[:12]}..."


# --- files ---


@contextlib.contextmanager
def local(path):
    """Tell the disk's faults from the network's: both are OSErrors."""
    try:
        yield
    except OSError as error:
        raise LocalError(f"{error.filename or path}: {error.strerror or error}; {KEPT}") from None


@contextlib.contextmanager
def locked(folder):
    """Hold the folder itself: two runs would write into the same partial files."""
    with local(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LocalError(f"another process is fetching into {folder}: wait for it") from None
    finally:
        os.close(handle)


class Partial:
    """A file on its way: its bytes so far in PATH.partial, and in a note beside them where they came from."""

    def __init__(self, destination: Path):
        self.path = destination.with_name(destination.name + SUFFIX)
        self.note = destination.with_name(destination.name + SUFFIX + ".json")

    def so_far(self, url: str) -> tuple[int, dict]:
        """How many bytes of the file at `url` are here, and its note; 0 where that is uncertain."""
        try:
            note = json.loads(self.note.read_text())
            if note["url"] == url:
                return self.path.stat().st_size, {"validator": note["validator"], "total": note["total"]}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a missing or torn note: the bytes may be of any file
        return 0, {"validator": None, "total": None}

    def start(self, note: dict | None):
        """Begin with an empty file. Without a note it will not be resumed."""
        with local(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            if note:
                self.note.write_text(json.dumps(note))
            else:
                self.note.unlink(missing_ok=True)

    @contextlib.contextmanager
    def appending(self):
        """A function that appends bytes; what it has written lies on the disk at the end."""
        with local(self.path):
            file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (what is done between is not the disk's)

        def append(chunk):
            with local(self.path):
                while chunk:  # an unbuffered write may take a part
                    chunk = chunk[file.write(chunk):]

        try:
            yield append
        finally:
            with local(self.path), file:
                os.fsync(file.fileno())

    def move_to(self, destination):
        with local(destination):
            self.note.unlink(missing_ok=True)
            os.replace(self.path, destination)

    def discard(self):
        with local(self.path):
            self.path.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder holds something, or was never made
                self.path.parent.rmdir()


def sha256(path) -> str:
    with local(path), open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def record_of(path) -> Path:
    return path.with_name(path.name + ".sha256")


def recorded(path) -> str | None:
    """The SHA-256 recorded for a file; None if there is no record."""
    with local(path):
        try:
            text = record_of(path).read_text(errors="replace")
        except FileNotFoundError:
            return None
    return text[:64].lower()  # a damaged record agrees with no file


def record(path, digest):
    partial = Partial(record_of(path))
    partial.start(None)
    with partial.appending() as append:
        append(f"{digest}  {path.name}\n".encode())
    partial.move_to(record_of(path))


# --- sources ---


class Source:
    """Somewhere to fetch from.

    title: what it is called in messages
    down: why it is not asked again in this run; None while it is
    """

    def __init__(self, title, options, console):
        self.title, self.options, self.console = title, options, console
        self.down = None
        self.answered = False
        self.opener = urllib.request.build_opener(Redirects)

    def bring(self, name, partial):
        """Fetch the teacher `name` into `partial`, whole but unchecked. Raises Refused, Dropped, LocalError."""
        raise NotImplementedError

    def download(self, label, url, partial):
        for attempt in range(1, self.options.retries + 1):
            try:
                return self._attempt(label, url, partial)
            except Dropped as fault:
                # A dead address costs one time-out, not one for each attempt at each teacher.
                first_contact = fault.silent and not self.answered
                if first_contact or attempt == self.options.retries:
                    raise
                pause = self.options.backoff * 2 ** (attempt - 1)
                self.console.say(f"{label}: {fault}; attempt {attempt + 1} of {self.options.retries} in {pause:g} s")
                time.sleep(pause)

    def _attempt(self, label, url, partial):
        """One request, for the rest of what `partial` holds of `url`."""
        have, note = partial.so_far(url)
        headers = {}
        if have:
            headers["Range"] = f"bytes={have}-"
            if note["validator"]:
                headers["If-Range"] = note["validator"]
        try:
            response = self.opener.open(urllib.request.Request(url, headers=headers), timeout=self.options.timeout)
        except urllib.error.HTTPError as error:
            self.answered = True
            with error:
                if error.code == 416 and have:
                    if content_range(error.headers) == (None, have):
                        return None  # nothing was left to fetch
                    partial.discard()
                    return self._attempt(label, url, partial)  # from the start, which cannot end here again
                reason = f"HTTP {error.code} {error.reason}"
                # Overload and faults of the server pass; the rest of the codes stays the same.
                again = error.code >= 500 or error.code in (408, 429)
                raise (Dropped if again else Refused)(reason) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Dropped(self._reason(error), silent=True) from None
        with response:
            self.answered = True
            length = response.length
            if response.status == 206 and have:
                start, total = content_range(response.headers)
                if start != have or (note["total"] is not None and total != note["total"]):
                    partial.discard()  # another file than the one begun
                    return self._attempt(label, url, partial)
                self.console.say(f"{label}: {url}, going on from {megabytes(have)}")
            elif response.status == 200:
                have, total = 0, length
                partial.start({"url": url, "validator": validator(response.headers), "total": total})
                self.console.say(f"{label}: {url}")
            else:
                raise Refused(f"HTTP {response.status} {response.reason}")
            return self._receive(label, response, partial, have, length, total)

    def _receive(self, label, response, partial, have, length, total):
        """Append the body of `length` bytes to the `have` before it, `total` in all; None: until it closes."""
        end = None if length is None else have + length
        size, meter = have, Meter(self.console, label, have, total if total is not None else end)
        with partial.appending() as append:
            # Bounded by its length: a server may hold the connection open after the last byte.
            while end is None or size < end:
                try:
                    chunk = response.read1(CHUNK)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    raise Dropped(f"{self._reason(error)} after {megabytes(size)}", silent=size == have) from None
                if not chunk:
                    break
                append(chunk)
                size += len(chunk)
                meter.show(size)
        whole = total if total is not None else end
        if whole is not None and size != whole:
            raise Dropped(f"cut off after {megabytes(size)} of {megabytes(whole)}", silent=size == have)

    def _reason(self, error) -> str:
        if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
            error = error.reason
        if isinstance(error, TimeoutError):
            return f"nothing came for {self.options.timeout:g} s"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"no valid certificate: {error.verify_message}"
        if isinstance(error, http.client.IncompleteRead):
            return "cut off"
        return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Publisher(Source):
    """A folder NAME_vanilla for each teacher."""

    def __init__(self, title, base, options, console):
        super().__init__(title, options, console)
        self.base = base

    def bring(self, name, partial):
        self.download(name, f"{self.base}/{name}_vanilla/{FILE}", partial)


def publishers(options, console) -> list[Publisher]:
    """The publisher over https and, unless https was asked for, over http."""
    scheme, rest = options.publisher.split("://", 1)
    secure = Publisher("the publisher over https", f"https://{rest}", options, console)
    if scheme == "https":
        return [secure]
    plain = "the publisher over http (unauthenticated)"
    return [secure, Publisher(plain, f"http://{rest}", options, console)]


class Mirror(Source):
    """One archive of all teachers, fetched once, when the first of them is wanted."""

    def __init__(self, options, console, folder):
        super().__init__("the mirror", options, console)
        self.archive = Partial(folder / ARCHIVE)
        self.complete = False

    def bring(self, name, partial):
        if not self.complete:
            try:
                self.download(ARCHIVE, f"{self.options.mirror}/{ARCHIVE}", self.archive)
            except Refused as fault:
                self.down = str(fault)  # the same for every teacher
                raise
            self.complete = True
        partial.start(None)
        try:
            with tarfile.open(self.archive.path) as archive, partial.appending() as append:
                # Only the bytes are taken: no name, link or mode of the archive reaches this file system.
                for member in archive:
                    if member.isreg() and PurePosixPath(member.name).parts[-2:] == (f"{name}_vanilla", FILE):
                        content = archive.extractfile(member)
                        while chunk := content.read(CHUNK):
                            append(chunk)
                        return
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            partial.discard()
            self.down = f"its {ARCHIVE} is damaged ({error})"
            raise Refused(self.down) from None
        partial.discard()
        raise Refused(f"its {ARCHIVE} holds no {name}")

    def leave(self, everything_in_place: bool):
        """Remove the archive, unless it is half fetched and still wanted."""
        if self.complete or everything_in_place:
            self.archive.discard()


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to anything less."""

    def redirect_request(self, request, file, code, message, headers, url):
        old, new = urlsplit(request.full_url).scheme, urlsplit(urljoin(request.full_url, url)).scheme
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            raise urllib.error.HTTPError(url, code, f"leads from {old} to {new}, which is refused", headers, file)
        return super().redirect_request(request, file, code, message, headers, url)


def content_range(headers) -> tuple[int | None, int | None]:
    """'bytes 5-9/10' -> (5, 10); 'bytes */10' -> (None, 10); what is not told is None."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if not match:
        return None, None
    start, total = match.groups()
    return (None if start is None else int(start)), (None if total == "*" else int(total))


def validator(headers) -> str | None:
    """What tells this version of the file from another; a weak ETag does not, byte for byte."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


# --- what is printed ---


class Console:
    """Lines, and on a terminal one more that is overwritten."""

    def __init__(self):
        self.live = sys.stdout.isatty()

    def say(self, text):
        print(f"\r\033[K{text}" if self.live else text, flush=True)

    def error(self, text):
        if self.live:
            print("\r\033[K", end="", flush=True)
        print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)


class Meter:
    """How far one download is; overwritten on a terminal, elsewhere a line every few seconds."""

    PAUSE_LIVE, PAUSE = 0.1, 3

    def __init__(self, console, label, have, total):
        self.console, self.label, self.have, self.total = console, label, have, total
        self.started = self.spoke = time.monotonic()

    def show(self, size):
        now = time.monotonic()
        if now - self.spoke < (self.PAUSE_LIVE if self.console.live else self.PAUSE):
            return
        self.spoke = now
        rate = (size - self.have) / max(now - self.started, 1e-6)
        parts = [megabytes(size)]
        if self.total:
            parts = [f"{megabytes(size)} of {megabytes(self.total)}", f"{100 * size / self.total:.0f}%"]
        parts.append(f"{megabytes(rate)}/s")
        if self.total:
            parts.append(f"{clock((self.total - size) / max(rate, 1e-6))} left")
        line = f"{self.label}  {'  '.join(parts)}"
        print(f"\r{line}\033[K" if self.console.live else line, end="" if self.console.live else "\n", flush=True)


def megabytes(count) -> str:
    return f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
