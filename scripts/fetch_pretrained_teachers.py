"""Fetch the published teachers into save/models/NAME_vanilla/ckpt_epoch_240.pth.

python scripts/fetch_pretrained_teachers.py                      # all six
python scripts/fetch_pretrained_teachers.py resnet32x4 vgg13     # these two

Each teacher is asked for at its publisher's over https, then there over http, then in the mirror's archive. What
comes takes its place only after its network has loaded it strictly. Its SHA-256 is recorded beside it
(`sha256sum -c ckpt_epoch_240.pth.sha256` reads it); the record holds from then on, for the file and for any other
that is fetched in its stead.

Nothing proves who sent what comes over http: a file of other weights with the right shapes would be taken.
Nothing in a file is executed, whoever sent it: it is read with weights_only.
"""
import argparse
import itertools
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import helper.util.start  # noqa: F401 (before PyTorch)

import pooch

from helper.cli import Parser
from helper.util.download import DownloadError, download
from helper.util.errors import RunError, guarded, printable
from helper.util.files import lock_folder, write_bytes
from models import CheckpointError, load_model

TEACHERS = ("wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50")
FILE = "ckpt_epoch_240.pth"
PUBLISHER = "http://shape2prog.csail.mit.edu/repo"
MIRROR = "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar"
# Bytes; the largest teacher, with its optimizer's state, has 190 MB. An archive of more members is not searched on.
TEACHER_LIMIT, ARCHIVE_LIMIT, MEMBERS_LIMIT = 500 * 10**6, 3 * 10**9, 1000


def main():
    options = parse(sys.argv[1:])
    folder = Path(options.save_dir) / "models"
    if options.dry_run:
        return print(f"would fetch {', '.join(options.teachers)} into {folder}, from {options.publisher} or "
                     f"{options.mirror}, unless they are there")
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / ".fetching"
    with lock_folder(str(folder), waiting=f"another process is fetching into {folder}: waiting"):
        shutil.rmtree(staging, ignore_errors=True)  # what a killed process has left
        staging.mkdir()
        try:
            sources = sources_of(options, staging)
            missing = [name for name in options.teachers if not put_in_place(name, folder, sources, staging / FILE)]
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    if missing:
        raise RunError(f"{', '.join(missing)} not available, for the reasons above: try again later, or get by "
                       f"hand {options.publisher}/NAME_vanilla/{FILE} (or {options.mirror}), put it at "
                       f"{folder}/NAME_vanilla/{FILE}, and run this again to check it")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="fetch_pretrained_teachers.sh",
                    description=f"Fetch the published teachers into SAVE_DIR/models/NAME_vanilla/{FILE}")
    parser.add_argument("teachers", nargs="*", metavar="NAME", help=f"of {', '.join(TEACHERS)} (default: all six)")
    parser.add_argument("--save_dir", default="./save", metavar="DIR", help="where teachers are written")
    parser.add_argument("--publisher", default=PUBLISHER, metavar="URL",
                        help=f"holds NAME_vanilla/{FILE}; an http:// address is tried over https first")
    parser.add_argument("--mirror", default=MIRROR, metavar="URL", help="an archive of all teachers")
    parser.add_argument("--dry_run", action="store_true", help="say what would be fetched, and do nothing")
    options = parser.parse_intermixed_args(argv)
    for name in options.teachers:
        if name not in TEACHERS:
            parser.error(f"'{name}' is not a published teacher: choose from {', '.join(TEACHERS)}")
    for url in (options.publisher, options.mirror):
        if not re.match(r"https?://[^/]", url):
            parser.error(f"'{url}' is not an address such as {PUBLISHER}")
    options.teachers = list(dict.fromkeys(options.teachers)) or list(TEACHERS)
    return options


def sources_of(options, staging: Path) -> dict[str, Callable[[str, Path], None]]:
    """Where to fetch from, by title, in this order; each brings a teacher of a name, unchecked, to a path."""
    scheme, rest = options.publisher.split("://", 1)
    sources: dict[str, Callable[[str, Path], None]] = {
        "the publisher over https": partial(from_publisher, f"https://{rest}")}
    if scheme == "http":
        sources["the publisher over http (unauthenticated)"] = partial(from_publisher, f"http://{rest}")
    return sources | {"the mirror": partial(from_mirror, options.mirror, staging / "archive.tar")}


def from_publisher(base: str, name: str, path: Path) -> None:
    download(f"{base}/{name}_vanilla/{FILE}", str(path), TEACHER_LIMIT)


def from_mirror(url: str, archive: Path, name: str, path: Path) -> None:
    """Fetch the archive, once, and copy the teacher's bytes: no name, link or mode in it reaches this file system."""
    try:
        if not archive.exists():
            download(url, str(archive), ARCHIVE_LIMIT)
        with tarfile.open(archive, "r:") as tar:  # "r:": a compressed archive could unpack to any size
            members = [m for m in itertools.islice(tar, MEMBERS_LIMIT)
                       if PurePosixPath(m.name).parts[-2:] == (f"{name}_vanilla", FILE)]
            for member in members[:1]:
                if not member.isreg() or member.issparse() or member.size > TEACHER_LIMIT:
                    raise ValueError(f"{name} in it is no plain file of at most {TEACHER_LIMIT / 1e6:.0f} MB")
                with open(path, "wb") as file:
                    shutil.copyfileobj(tar.extractfile(member), file)  # type: ignore[arg-type]  # it is a file
    except Exception as error:  # tarfile raises what the bytes happen to provoke
        reason = str(error) if isinstance(error, DownloadError) else f"{url} cannot be read ({error})"
        raise DownloadError(reason, unreachable=True) from None  # the same for every teacher
    if not members:
        raise DownloadError(f"{url} holds no {name}")


def put_in_place(name: str, folder: Path, sources: dict, staged: Path) -> bool:
    """Check the teacher that is in `folder`, or fetch it there, and print how that went.

    staged: where it is fetched to; sources: those that do not answer are taken out
    """
    place = folder / f"{name}_vanilla" / FILE
    there = os.path.lexists(place)
    for title, bring in [("the file there", None)] if there else list(sources.items()):
        try:
            if bring:
                bring(name, staged)
            said = accept(name, place if there else staged, place)
        except (DownloadError, CheckpointError) as error:
            print(printable(f"{name}: {title}: {str(error).replace(str(staged), 'what came')}"), flush=True)
            staged.unlink(missing_ok=True)
            if isinstance(error, DownloadError) and error.unreachable:
                del sources[title]  # a server that is down costs one time-out, not one for each teacher
        else:
            print(f"{name}: {place} from {title}, {said}", flush=True)
            return True
    return False


def accept(name: str, file: Path, place: Path) -> str:
    """Load the file strictly, compare its SHA-256 to the one recorded for `place`, and put it there; in words.

    Raises CheckpointError where the file is not what it should be.
    """
    accuracy = load_model(file, model_name=name, num_classes=100)[1].accuracy
    record, digest = place.with_name(f"{FILE}.sha256"), pooch.file_hash(str(file))
    known = record.read_text(errors="replace")[:64].lower() if record.exists() else digest
    if known != digest:
        raise CheckpointError(f"{file} has not the SHA-256 that is recorded in {record}: delete it and fetch it again "
                              f"(or, if the change is meant, delete {record.name})")
    place.parent.mkdir(exist_ok=True)
    os.replace(file, place)
    write_bytes(str(record), f"{digest}  {FILE}\n".encode())
    claim = f", accuracy {accuracy:.2f} as recorded in it" if accuracy is not None else ""
    return f"loads strictly{claim}, SHA-256 {digest[:12]}..."


if __name__ == "__main__":
    guarded(main)
