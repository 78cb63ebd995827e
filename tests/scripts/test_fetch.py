"""Fetching the teachers, as a user does it, from a server on this machine that fails in every way it can."""
import hashlib
import http.server
import io
import os
import pty
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
import torch

from models import load_model, model_dict

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "fetch_pretrained_teachers.py"
ARCHIVE = "/mirror/cifar_teachers.tar"
FILE = "ckpt_epoch_240.pth"
# A certificate for 127.0.0.1 that nothing trusts unless it is told to; it guards nothing.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgOnWUNGh5CWBohqCo
0EMVHGaXksdVR6j5Mi12RLrOd4GhRANCAAR184IGKdCTwqhKnMIrVVZ3/NzSpScQ
bKzL1sDXi3YMvQIT3kHD+db1ZFTzOuNkSXdC/+8y4XRYA6U0Z5/B1vqG
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBXDCCAQKgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAkxMjcuMC4w
LjEwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CTEyNy4wLjAuMTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABHXzggYp0JPCqEqc
witVVnf83NKlJxBsrMvWwNeLdgy9AhPeQcP51vVkVPM642RJd0L/7zLhdFgDpTRn
n8HW+oajQzBBMA8GA1UdEwEB/wQFMAMBAf8wHQYDVR0OBBYEFAGjeY36tTESGdUw
NOnCuGgriZ6FMA8GA1UdEQQIMAaHBH8AAAEwCgYIKoZIzj0EAwIDSAAwRQIhAIjO
xxYNbcfeRScLNWdoX8u2SRjTAEGiYJeLUF8o51iWAiAG1iKPg/urchn2R2QTtJEk
hjSSW0Y03sV7VYjk3ClAjQ==
-----END CERTIFICATE-----
"""


# --- the server ---


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `plan[path]` is a list of faults, one for each request to come.

    `etags` are those that are not "1"; None: no ETag.
    A fault is a function of the handler, the file's content, and the first byte that is asked for.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.plan, self.requests, self.tls, self.etags = {}, {}, [], None, {}
        self.closing = threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests

    def asked(self, path):
        """The Range headers of the requests for `path`."""
        return [headers.get("Range") for asked, headers, _ in self.requests if asked == path]


class Handler(http.server.BaseHTTPRequestHandler):
    def setup(self):
        # As no real server does, this one speaks both on one port: a TLS handshake begins with 22.
        if self.server.tls and self.request.recv(1, socket.MSG_PEEK) == b"\x16":
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def log_message(self, *args):
        pass

    def do_GET(self):
        secure = isinstance(self.request, ssl.SSLSocket)
        self.server.requests.append((self.path, dict(self.headers), secure))
        content = self.server.files.get(self.path)
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        if self.headers.get("If-Range", self.etag()) != self.etag():
            start = 0
        faults = self.server.plan.get(self.path)
        if faults:
            faults.pop(0)(self, content, start)
        elif content is None:
            status(404)(self, content, start)
        elif start >= len(content):
            status(416, **{"Content-Range": f"bytes */{len(content)}"})(self, content, start)
        else:
            whole(self, content, start)

    def etag(self):
        return self.server.etags.get(self.path, '"1"')

    def head(self, code, **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        if self.etag():
            self.send_header("ETag", self.etag())
        self.end_headers()


def whole(handler, content, start, until=None):
    headers = {"Content-Length": len(content) - start}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    handler.head(206 if start else 200, **headers)
    handler.wfile.write(content[start:until])


def cut(at):
    return lambda handler, content, start: whole(handler, content, start, at)


def stall(at=None):
    """Silence after the byte `at`; before any answer if it is None."""
    def fault(handler, content, start):
        if at is not None:
            whole(handler, content, start, at)
        handler.server.closing.wait(60)
    return fault


def dribble(seconds):
    def fault(handler, content, start):
        whole(handler, content, start, start)
        step = len(content) // 40
        for first in range(start, len(content), step):
            handler.wfile.write(content[first:first + step])
            time.sleep(seconds / 40)
    return fault


def status(code, **headers):
    return lambda handler, content, start: handler.head(code, **{"Content-Length": 0, **headers})


def answers(data):
    return lambda handler, content, start: whole(handler, data, 0)


def without_length(until):
    def fault(handler, content, start):
        handler.head(200)
        handler.wfile.write(content[:until])
    return fault


def ignores_range(handler, content, start):
    whole(handler, content, 0)


def wrong_range(handler, content, start):
    handler.head(206, **{"Content-Length": 10, "Content-Range": f"bytes 0-9/{len(content)}"})
    handler.wfile.write(content[:10])


# --- what it serves, and who asks ---


@pytest.fixture(scope="session")
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
    server = Server()
    for name in ("resnet56", "resnet110", "wrn_40_2"):
        server.files[at_publisher(name)] = checkpoints[name]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def at_publisher(name):
    return f"/repo/{name}_vanilla/{FILE}"


def place(save, name):
    return save / "models" / f"{name}_vanilla" / FILE


def archive_of(files, prefix="./cifar_teachers/"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{prefix}{name}_vanilla/{FILE}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def environment(**more):
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    folder = os.path.dirname(sys.executable)
    return {**kept, "PATH": f"{folder}:{kept['PATH']}", "OMP_NUM_THREADS": "1", **more}


def arguments(server, save, *more, timeout=5, publisher=None):
    return ["--save_dir", str(save), "--publisher", publisher or f"{server.address}/repo",
            "--mirror", f"{server.address}/mirror", "--timeout", str(timeout), "--backoff", "0.01", *more]


def fetch(server, save, *more, start=(sys.executable, str(SCRIPT)), env=None, limit=None, **options):
    """Run the script; its output must be lines meant for people."""
    def limited():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run([*start, *arguments(server, save, *more, **options)], capture_output=True, text=True,
                          timeout=60, env=environment(**(env or {})), preexec_fn=limited, cwd=save.parent)
    assert "Traceback" not in done.stderr, done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
    return done


def left(save):
    """Every file under the folder of models."""
    return sorted(str(path.relative_to(save / "models")) for path in (save / "models").rglob("*"))


def complete(*names):
    return sorted(path for name in names for path in (
        f"{name}_vanilla", f"{name}_vanilla/{FILE}", f"{name}_vanilla/{FILE}.sha256"))


@pytest.fixture
def save(tmp_path):
    return tmp_path / "save"


# --- the tests ---


def test_teachers_asked_for_by_name_are_put_in_place_and_not_asked_for_again(server, save, checkpoints):
    sh = ("sh", str(ROOT / "scripts" / "fetch_pretrained_teachers.sh"))
    server.plan = {at_publisher("resnet56"): [dribble(4)]}
    done = fetch(server, save, "resnet56", "wrn_40_2", "resnet56", start=sh)
    assert done.returncode == 0, done.stderr
    assert left(save) == complete("resnet56", "wrn_40_2")
    for name in ("resnet56", "wrn_40_2"):
        assert place(save, name).read_bytes() == checkpoints[name]
        assert server.asked(at_publisher(name)) == [None]
        check = subprocess.run(["sha256sum", "-c", f"{FILE}.sha256"], cwd=place(save, name).parent, check=False)
        assert check.returncode == 0
    assert load_model(place(save, "resnet56"))[0].name == "resnet56"
    assert server.asked(ARCHIVE) == []
    # Where no terminal is, progress is a line every three seconds.
    assert "\r" not in done.stdout and "\033" not in done.stdout
    assert len(re.findall(r"^resnet56  [\d.]+ MB of 3\.\d MB  \d+%", done.stdout, re.M)) == 1

    server.requests.clear()
    assert fetch(server, save, "resnet56", "wrn_40_2", start=sh).returncode == 0
    assert server.requests == []


def test_without_a_name_all_six_are_asked_for(server, save):
    server.files.clear()
    done = fetch(server, save)
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stderr.splitlines()] == [
        "wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50"]
    for name in ("wrn_40_2", "ResNet50"):
        assert server.asked(at_publisher(name)) == [None]  # a 404 is not retried
        line = next(line for line in done.stderr.splitlines() if f" {name} " in line)
        assert "publisher over http" in line and "mirror: HTTP 404" in line and str(place(save, name)) in line
    assert server.asked(ARCHIVE) == [None]
    assert left(save) == []


def test_downloads_that_are_cut_off_or_stall_resume(server, save, checkpoints):
    server.plan = {
        at_publisher("resnet56"): [cut(1_000_000), stall(2_000_000)],
        at_publisher("resnet110"): [cut(1_000_000), ignores_range],
        at_publisher("wrn_40_2"): [cut(1_000_000), wrong_range],
    }
    done = fetch(server, save, "resnet56", "resnet110", "wrn_40_2", timeout=1)
    assert done.returncode == 0, done.stderr
    assert "cut off after 1.0 MB of 3." in done.stdout and "nothing came for 1 s after 2.0 MB" in done.stdout
    assert server.asked(at_publisher("resnet56")) == [None, "bytes=1000000-", "bytes=2000000-"]
    assert server.asked(at_publisher("resnet110")) == [None, "bytes=1000000-"]
    assert server.asked(at_publisher("wrn_40_2")) == [None, "bytes=1000000-", None]
    assert [headers.get("If-Range") for _, headers, _ in server.requests][:3] == [None, '"1"', '"1"']
    for name in ("resnet56", "resnet110", "wrn_40_2"):
        assert place(save, name).read_bytes() == checkpoints[name]
    assert left(save) == complete("resnet56", "resnet110", "wrn_40_2")


def test_a_later_run_resumes_unless_the_file_has_changed(server, save, checkpoints):
    wrn, resnet = at_publisher("wrn_40_2"), at_publisher("resnet56")
    server.plan = {wrn: [cut(1_000_000)], resnet: [cut(1_000_000)]}
    done = fetch(server, save, "resnet56", "wrn_40_2", "--retries", "1")
    assert done.returncode == 1 and not place(save, "wrn_40_2").exists()
    assert "cut off after 1.0 MB" in done.stderr

    server.requests.clear()
    server.etags = {resnet: '"2"'}
    server.files[resnet] = repickled(checkpoints["resnet56"])
    assert fetch(server, save, "resnet56", "wrn_40_2").returncode == 0
    for path, name in ((resnet, "resnet56"), (wrn, "wrn_40_2")):
        assert server.asked(path) == ["bytes=1000000-"]
        assert place(save, name).read_bytes() == server.files[path]
    assert left(save) == complete("resnet56", "wrn_40_2")


def repickled(checkpoint):
    """Another file with other weights of the same network."""
    content = torch.load(io.BytesIO(checkpoint), weights_only=True)
    content["model"] = {key: value + 1 for key, value in content["model"].items()}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_without_a_validator_the_length_tells_whether_the_file_is_the_one_begun(server, save, checkpoints):
    begun = {"resnet56": checkpoints["resnet56"], "resnet110": checkpoints["resnet110"] + b"more",
             "wrn_40_2": checkpoints["wrn_40_2"][:1000]}
    for name, data in begun.items():
        server.etags[at_publisher(name)] = None
        place(save, name).parent.mkdir(parents=True)
        place(save, name).with_name(f"{FILE}.partial").write_bytes(data)
        total = len(data) if name != "wrn_40_2" else len(checkpoints[name]) + 1
        place(save, name).with_name(f"{FILE}.partial.json").write_text(
            f'{{"url": "{server.address}{at_publisher(name)}", "validator": null, "total": {total}}}')
    done = fetch(server, save, *begun)
    assert done.returncode == 0, done.stderr
    first = [f"bytes={len(data)}-" for data in begun.values()]
    # All of the first was there already; the others are other files by now.
    assert [server.asked(at_publisher(name)) for name in begun] == [[first[0]], [first[1], None], [first[2], None]]
    for name in begun:
        assert place(save, name).read_bytes() == checkpoints[name]
    assert left(save) == complete(*begun)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_does_not_load_strictly_is_removed_and_the_mirror_asked(server, save, checkpoints, tmp_path):
    malicious = io.BytesIO()
    torch.save({"model": Payload(tmp_path / "ran")}, malicious)
    server.plan = {
        at_publisher("resnet56"): [answers(b"<html>not here</html>" * 1000)],
        at_publisher("resnet110"): [answers(checkpoints["resnet8"])],
        at_publisher("wrn_40_2"): [answers(malicious.getvalue())],
    }
    server.files[ARCHIVE] = archive_of({n: checkpoints[n] for n in ("resnet110", "wrn_40_2", "resnet56")})
    server.plan[ARCHIVE] = [cut(5_000_000)]
    done = fetch(server, save, "resnet56", "resnet110", "wrn_40_2")
    assert done.returncode == 0, done.stderr
    assert server.asked(ARCHIVE) == [None, "bytes=5000000-"]
    assert not (tmp_path / "ran").exists()
    assert "what came is not a PyTorch checkpoint" in done.stdout
    assert "what came does not fit resnet110" in done.stdout
    assert "could run any code" in done.stdout
    for name in ("resnet56", "resnet110", "wrn_40_2"):
        assert place(save, name).read_bytes() == checkpoints[name]
    assert left(save) == complete("resnet56", "resnet110", "wrn_40_2")


def test_nothing_that_failed_is_left_and_the_others_are_fetched(server, save, checkpoints, tmp_path):
    server.plan = {
        at_publisher("resnet56"): [without_length(1_000_000)],
        at_publisher("resnet110"): [status(503), status(503)],
    }
    server.files[ARCHIVE] = archive_of({"resnet56": b"garbage"}, prefix=f"{tmp_path}/outside/../")
    done = fetch(server, save, "resnet56", "vgg13", "resnet110")
    assert done.returncode == 1
    assert server.asked(at_publisher("resnet110")) == [None] * 3  # an overloaded server is asked again
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert "resnet56 is missing" in lines[0] and "truncated or corrupt" in lines[0] and "not a PyTorch" in lines[0]
    assert "vgg13 is missing" in lines[1] and "HTTP 404" in lines[1] and "holds no vgg13" in lines[1]
    assert left(save) == complete("resnet110")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["save"]  # no member went where its name says


@pytest.mark.parametrize("archive", [b"garbage" * 1000, "truncated"], ids=["garbage", "truncated"])
def test_a_damaged_archive_is_removed(server, save, checkpoints, archive):
    server.files.clear()
    server.files[ARCHIVE] = archive_of(checkpoints)[:1_000_000] if archive == "truncated" else archive
    done = fetch(server, save, "resnet56", "wrn_40_2")
    assert done.returncode == 1
    assert done.stderr.count("cifar_teachers.tar is damaged") == 2
    assert server.asked(ARCHIVE) == [None]
    assert left(save) == []


def test_a_dead_publisher_costs_one_time_out(server, save):
    names = ("resnet56", "resnet110", "wrn_40_2")
    server.plan = {at_publisher(name): [stall()] * 9 for name in names}
    done = fetch(server, save, *names, timeout=0.5)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 3
    assert [path for path, _, _ in server.requests] == [at_publisher("resnet56"), ARCHIVE]
    assert done.stdout.count("is not available (nothing came for 0.5 s)") == 1
    assert left(save) == []


def test_where_nothing_answers_each_missing_teacher_has_its_line(server, save):
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = fetch(server, save, "resnet56", "vgg13", "--mirror", address, publisher=address)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2 and done.stderr.count("Connection refused") == 6
    assert left(save) == []


def test_what_is_in_place_is_checked_and_never_replaced(server, save, checkpoints):
    names = ("resnet56", "resnet110", "wrn_40_2", "vgg13")
    changed, replaced, unrecorded, garbage = (place(save, name) for name in names)
    for path in (changed, replaced, unrecorded, garbage):
        path.parent.mkdir(parents=True)
    for path in (changed, replaced):
        path.with_name(f"{FILE}.sha256").write_text(f"{'0' * 64}  {FILE}\n")
    changed.write_bytes(checkpoints["resnet56"])
    unrecorded.write_bytes(checkpoints["wrn_40_2"])
    garbage.write_bytes(b"garbage")
    done = fetch(server, save, *names)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    assert f"{changed} has changed" in lines[0] and "delete it and fetch it again" in lines[0]
    assert changed.read_bytes() == checkpoints["resnet56"]
    # A record holds for what is fetched in its stead, too.
    assert "resnet110 is missing" in lines[1] and "has not the SHA-256 that is recorded" in lines[1]
    assert sorted(path.name for path in replaced.parent.iterdir()) == [f"{FILE}.sha256"]
    assert f"{garbage} is not a PyTorch checkpoint" in lines[2]
    assert garbage.read_bytes() == b"garbage"
    assert unrecorded.with_name(f"{FILE}.sha256").read_text() == f"{sha256(checkpoints['wrn_40_2'])}  {FILE}\n"
    assert {path for path, _, _ in server.requests} == {at_publisher("resnet110"), ARCHIVE}


def test_https_is_taken_where_its_certificate_is_valid(server, save, tmp_path):
    pem = tmp_path / "server.pem"
    pem.write_text(CERTIFICATE)
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(pem)
    moved = status(302, Location=f"{server.address}{at_publisher('resnet56')}")
    server.plan = {at_publisher("vgg13"): [moved]}
    done = fetch(server, save, "vgg13", env={"SSL_CERT_FILE": str(pem)})
    assert [(path, secure) for path, _, secure in server.requests] == [
        (at_publisher("vgg13"), True), (at_publisher("vgg13"), False), (ARCHIVE, False)]
    assert "leads from https to http, which is refused" in done.stderr

    server.requests.clear()
    done = fetch(server, save, "vgg13", "ResNet50")
    assert [(path, secure) for path, _, secure in server.requests] == [
        (at_publisher("vgg13"), False), (ARCHIVE, False), (at_publisher("ResNet50"), False)]
    assert done.stdout.count("over https is not available (no valid certificate: self-signed certificate)") == 1
    assert "over http (unauthenticated)" in done.stdout

    # An https address is not weakened to http.
    server.requests.clear()
    done = fetch(server, save, "vgg13", publisher=server.address.replace("http:", "https:") + "/repo")
    assert done.returncode == 1
    assert [path for path, _, _ in server.requests] == [ARCHIVE]


def test_a_full_disk_is_one_line_and_what_came_is_kept(server, save):
    done = fetch(server, save, "resnet56", "wrn_40_2", limit=1_000_000)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "File too large; what came so far is kept" in done.stderr
    folder = place(save, "resnet56").parent
    assert sorted(path.name for path in folder.iterdir()) == [f"{FILE}.partial", f"{FILE}.partial.json"]
    assert (folder / f"{FILE}.partial").stat().st_size == 1_000_000

    (save.parent / "file").write_text("")
    done = fetch(server, save.parent / "file", "resnet56")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "Not a directory" in done.stderr


@pytest.mark.parametrize("bad, said", [
    (["resnet57"], "wrn_40_2, resnet56, resnet110, resnet32x4, vgg13, ResNet50"),
    (["--publisher", "ftp://host/x"], "not an address"),
    (["--retries", "0"], "integer of 1 or more"),
    (["--time=3"], "unrecognized"),
])
def test_a_bad_command_is_one_line(server, save, bad, said):
    done = fetch(server, save, *bad)
    assert done.returncode == 2 and server.requests == [] and not save.exists()
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr


def test_progress_is_one_line_on_a_terminal_and_an_interrupt_keeps_what_came(server, save):
    main, side = pty.openpty()
    command = [sys.executable, str(SCRIPT), *arguments(server, save, "resnet56", timeout=30)]
    server.plan = {at_publisher("resnet56"): [dribble(60)]}
    run = subprocess.Popen(command, stdout=side, stderr=subprocess.PIPE, text=True, env=environment())
    os.close(side)
    shown = ""
    while not (found := re.findall(r"\rresnet56  [\d.]+ MB of 3\.\d MB  \d+%  [\d.]+ MB/s  0:\d\d:\d\d left", shown)):
        shown += os.read(main, 4096).decode()
    # A second run beside it does not touch its files.
    other = fetch(server, save, "resnet56")
    assert other.returncode == 1 and "another process is fetching" in other.stderr
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    os.close(main)
    assert found and run.returncode == 130
    assert errors.startswith("error: stopped") and len(errors.splitlines()) == 1
    assert place(save, "resnet56").with_name(f"{FILE}.partial").stat().st_size > 0
    assert not place(save, "resnet56").exists()
