"""Fetching the teachers, from a server on this machine that fails in every way it can."""
import hashlib
import io
import os
import socket
import ssl
import subprocess
import sys
import tarfile

import pytest
import torch

from helper.util import download
from helper.util.errors import guarded
from helper.util.files import lock_folder
from models import load_model, model_dict
from scripts import fetch_pretrained_teachers as script
from tests.support import scripts
from tests.support.server import CERTIFICATE, sends, serving, stall, status

ARCHIVE = "/mirror/cifar_teachers.tar"
FILE = "ckpt_epoch_240.pth"


@pytest.fixture(scope="module")
def checkpoints():
    """Small teachers in the published format."""
    torch.manual_seed(0)
    files = {}
    for name in ("resnet56", "resnet110", "wrn_40_2", "resnet8"):
        network = model_dict[name](num_classes=100)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        buffer = io.BytesIO()
        torch.save({"epoch": 240, "model": network.state_dict(), "accuracy": torch.tensor(72.34),
                    "optimizer": optimizer.state_dict()}, buffer)
        files[name] = buffer.getvalue()
    return files


@pytest.fixture
def server(checkpoints):
    with serving() as server:
        server.files = {at_publisher(name): checkpoints[name] for name in ("resnet56", "resnet110", "wrn_40_2")}
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def at_publisher(name):
    return f"/repo/{name}_vanilla/{FILE}"


def place(save, name):
    return save / "models" / f"{name}_vanilla" / FILE


def archive_of(files, prefix="./cifar_teachers/", mode="w", **of_members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{prefix}{name}_vanilla/{FILE}")
            member.size = len(content)
            for key, value in of_members.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def command(server, save, *names, publisher=None, mirror=None):
    return [*names, "--save_dir", str(save), "--publisher", f"{publisher or server.address}/repo",
            "--mirror", f"{mirror or server.address}{ARCHIVE}"]


@pytest.fixture
def fetch(server, save, monkeypatch, capsys):
    """Run the script: (exit code, its lines on standard output, its one line on standard error or None)."""
    def run(*names, **addresses):
        monkeypatch.setattr(sys, "argv", ["fetch", *command(server, save, *names, **addresses)])
        code = 0
        try:
            guarded(script.main)
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert err.count("\n") == (code != 0) and err.startswith("error: ") == (code != 0), err
        return code, out, err

    return run


def left(save):
    """Every file under the folder of models, but the lock."""
    return sorted(str(path.relative_to(save / "models")) for path in (save / "models").rglob("*")
                  if path.name != ".lock")


def complete(*names):
    return sorted(path for name in names for path in (
        f"{name}_vanilla", f"{name}_vanilla/{FILE}", f"{name}_vanilla/{FILE}.sha256"))


@pytest.fixture
def save(tmp_path):
    return tmp_path / "save"


def test_teachers_asked_for_by_name_are_put_in_place_and_not_asked_for_again(server, save, checkpoints):
    sh = ["sh", str(scripts.ROOT / "scripts/fetch_pretrained_teachers.sh"),
          *command(server, save, "resnet56", "wrn_40_2", "resnet56")]
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    (save / "models/.fetching").mkdir(parents=True)  # what a killed process has left
    (save / "models/.fetching/archive.tar").write_bytes(b"half")
    done = subprocess.run(sh, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy 72.34 as recorded in it" in done.stdout
    assert left(save) == complete("resnet56", "wrn_40_2")
    for name in ("resnet56", "wrn_40_2"):
        assert place(save, name).read_bytes() == checkpoints[name]
        check = subprocess.run(["sha256sum", "-c", f"{FILE}.sha256"], cwd=place(save, name).parent, check=False)
        assert check.returncode == 0
    assert load_model(place(save, "resnet56"))[0].name == "resnet56"
    assert sorted(path for path, _ in server.requests) == [at_publisher("resnet56"), at_publisher("wrn_40_2")]


def test_a_second_command_waits_for_the_first_and_finds_its_files(server, save, checkpoints):
    place(save, "resnet56").parent.mkdir(parents=True)
    lock = lock_folder(str(save / "models"))
    process = scripts.Process("scripts/fetch_pretrained_teachers.py", *command(server, save, "resnet56"))
    process.until("another process is fetching into")
    place(save, "resnet56").write_bytes(checkpoints["resnet56"])
    lock.close()
    assert process.wait() == 0 and server.requests == [], process.stderr
    assert left(save) == complete("resnet56")


def test_offline_one_line_names_what_is_missing_and_the_addresses(server, save, fetch):
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, out, err = fetch(publisher=address, mirror=address)
    assert code == 1 and out.count("Connection refused") == 3  # each source is asked once, not for each teacher
    assert err.startswith("error: wrn_40_2, resnet56, resnet110, resnet32x4, vgg13, ResNet50 not available")
    assert f"get by hand {address}/repo/NAME_vanilla/{FILE} (or {address}{ARCHIVE}), put it at {save}/models/" in err
    assert left(save) == []


def test_a_publisher_that_is_silent_costs_one_time_out(server, save, fetch):
    names = ("resnet56", "resnet110", "wrn_40_2")
    server.plan = {at_publisher(name): [stall()] * 9 for name in names}
    code, out, _ = fetch(*names)
    assert code == 1 and [path for path, _ in server.requests] == [at_publisher("resnet56"), ARCHIVE]
    assert out.count("nothing came for 0.5 s") == 1 and left(save) == []


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_does_not_load_strictly_is_removed_and_the_mirror_asked(server, save, fetch, checkpoints, tmp_path):
    malicious = io.BytesIO()
    torch.save({"model": Payload(tmp_path / "ran")}, malicious)
    server.plan = {
        at_publisher("resnet56"): [sends(content=b"<html>not here</html>" * 1000)],
        at_publisher("resnet110"): [sends(content=checkpoints["resnet8"])],
        at_publisher("wrn_40_2"): [sends(content=malicious.getvalue())],
        ARCHIVE: [sends(5_000_000)],  # a broken connection, which is tried again
    }
    names = ("resnet56", "resnet110", "wrn_40_2")
    server.files[ARCHIVE] = archive_of({name: checkpoints[name] for name in names})
    code, out, _ = fetch(*names)
    assert code == 0 and [path for path, _ in server.requests].count(ARCHIVE) == 2
    assert not (tmp_path / "ran").exists()
    for reason in ("what came is not a PyTorch checkpoint", "what came does not fit resnet110", "could run any code"):
        assert reason in out
    for name in names:
        assert place(save, name).read_bytes() == checkpoints[name]
    assert left(save) == complete(*names)


def test_nothing_that_failed_is_left_and_the_others_are_fetched(server, save, fetch, tmp_path):
    server.plan[at_publisher("resnet56")] = [sends(content=b"garbage")]
    server.files[ARCHIVE] = archive_of({"resnet56": b"garbage"}, prefix=f"{tmp_path}/outside/../")
    code, out, err = fetch("resnet56", "vgg13", "resnet110")
    assert code == 1 and err.startswith("error: resnet56, vgg13 not available")
    assert out.count("resnet56: ") == 3 and "HTTP 404" in out and "holds no vgg13" in out
    assert left(save) == complete("resnet110")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["save"]  # no member went where its name says


@pytest.mark.parametrize("kind, says", [
    ("garbage", "cannot be read"), ("truncated", "cannot be read"), ("compressed", "cannot be read"),
    ("sparse", "no plain file"), ("link", "no plain file"), ("large", "no plain file"), ("huge", "more than 0 MB"),
])
def test_a_bad_archive_is_one_line_and_removed(server, save, fetch, checkpoints, kind, says, monkeypatch):
    resnet = {"resnet56": checkpoints["resnet56"]}
    server.files = {ARCHIVE: {
        "garbage": b"garbage" * 1000, "truncated": archive_of(resnet)[:1_000_000],
        "compressed": archive_of(resnet, mode="w:gz"),
        "sparse": archive_of(resnet, pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "100000000"}),
        "link": archive_of(resnet, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    }.get(kind, archive_of(resnet))}
    monkeypatch.setattr(script, {"large": "TEACHER_LIMIT", "huge": "ARCHIVE_LIMIT"}.get(kind, "MEMBERS_LIMIT"), 1000)
    code, out, _ = fetch("resnet56", "wrn_40_2")
    assert code == 1 and out.count(says) == 1 and [path for path, _ in server.requests].count(ARCHIVE) == 1
    assert left(save) == []


def test_a_teacher_beyond_the_limit_is_given_up(server, save, fetch, monkeypatch):
    monkeypatch.setattr(script, "TEACHER_LIMIT", 1_000_000)
    code, out, _ = fetch("resnet56")
    assert code == 1 and "more than 1 MB" in out and left(save) == []


def test_what_is_in_place_is_checked_and_never_replaced(server, save, fetch, checkpoints):
    names = ("resnet56", "resnet110", "wrn_40_2", "vgg13")
    changed, replaced, unrecorded, garbage = (place(save, name) for name in names)
    for path in (changed, replaced, unrecorded, garbage):
        path.parent.mkdir(parents=True)
    for path in (changed, replaced):
        path.with_name(f"{FILE}.sha256").write_text(f"{'0' * 64}  {FILE}\n")
    changed.write_bytes(checkpoints["resnet56"])
    unrecorded.write_bytes(checkpoints["wrn_40_2"])
    garbage.write_bytes(b"garbage")
    code, out, err = fetch(*names)
    assert code == 1 and err.startswith("error: resnet56, resnet110, vgg13 not available")
    assert f"{changed} has not the SHA-256 that is recorded" in out and "delete it and fetch it again" in out
    assert changed.read_bytes() == checkpoints["resnet56"]
    # A record holds for what is fetched in its stead, too.
    assert "what came has not the SHA-256 that is recorded" in out
    assert sorted(path.name for path in replaced.parent.iterdir()) == [f"{FILE}.sha256"]
    assert f"{garbage} is not a PyTorch checkpoint" in out and garbage.read_bytes() == b"garbage"
    digest = hashlib.sha256(checkpoints["wrn_40_2"]).hexdigest()
    assert unrecorded.with_name(f"{FILE}.sha256").read_text() == f"{digest}  {FILE}\n"
    assert {path for path, _ in server.requests} == {at_publisher("resnet110"), ARCHIVE}


def test_https_is_taken_where_its_certificate_is_valid(server, save, fetch, tmp_path, monkeypatch):
    pem = tmp_path / "server.pem"
    pem.write_text(CERTIFICATE)
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(pem)
    _, out, _ = fetch("vgg13", "ResNet50")
    assert server.requests == [(at_publisher("vgg13"), False), (ARCHIVE, False), (at_publisher("ResNet50"), False)]
    assert out.count("over https") == 1 and "certificate verify failed" in out and "over http (unauth" in out

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
    server.requests.clear()
    server.plan[at_publisher("vgg13")] = [status(302, Location=f"{server.address}{at_publisher('resnet56')}")]
    _, out, _ = fetch("vgg13")
    assert server.requests == [(at_publisher("vgg13"), True), (at_publisher("vgg13"), False), (ARCHIVE, False)]
    assert "redirects from https to http" in out

    # An https address is not weakened to http.
    server.requests.clear()
    fetch("vgg13", publisher=server.address.replace("http:", "https:"))
    assert server.requests == [(at_publisher("vgg13"), True), (ARCHIVE, False)]


def test_a_folder_that_cannot_be_written_is_one_line(save, fetch):
    save.write_text("")
    code, _, err = fetch("resnet56")
    assert code == 1 and "Not a directory" in err


@pytest.mark.parametrize("bad, says", [
    (["resnet57"], "choose from wrn_40_2, resnet56, resnet110, resnet32x4, vgg13, ResNet50"),
    (["--publisher", "ftp://host/x"], "is not an address such as"),
    (["--time=3"], "unrecognized"),
])
def test_a_bad_command_is_one_line(save, bad, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fetch", "--save_dir", str(save), *bad])
    with pytest.raises(SystemExit, match="2"):
        guarded(script.main)
    assert says in capsys.readouterr().err and not save.exists()
