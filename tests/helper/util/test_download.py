"""Downloads: the file that was meant, whole, or one line that says why not and nothing left behind."""
import gzip
import hashlib
import os
import resource
import socket
import ssl

import pytest

from helper.util import download as subject
from helper.util.download import DownloadError, download
from tests.support.server import CERTIFICATE, dribble, endless, sends, serving, stall, status

CONTENT = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(subject, "PAUSE", 0)
    monkeypatch.setattr(subject, "TIMEOUT", 0.5)
    monkeypatch.setattr(subject, "SLOW", 2)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def server():
    with serving() as server:
        server.files["/file"] = CONTENT
        yield server


def fetch(server, folder, limit=10**7, known_hash=None, path="/file"):
    folder.mkdir(exist_ok=True)
    download(server.address + path, str(folder / "it"), limit, known_hash)
    assert os.listdir(folder) == ["it"]
    return (folder / "it").read_bytes()


def refused(server, folder, *args, **kwargs):
    with pytest.raises(DownloadError) as caught:
        fetch(server, folder, *args, **kwargs)
    assert os.listdir(folder) == [] and "\n" not in str(caught.value) and server.address in str(caught.value)
    return caught.value


def test_what_breaks_off_stalls_or_is_overloaded_is_tried_again(server, tmp_path, capsys):
    server.plan["/file"] = [sends(1000), stall(2000)]
    assert fetch(server, tmp_path / "a") == CONTENT
    assert capsys.readouterr().out.count("trying again") == 2 and len(server.requests) == 3
    server.plan["/file"] = [status(503)]
    assert fetch(server, tmp_path / "b", known_hash=f"md5:{hashlib.md5(CONTENT).hexdigest()}") == CONTENT
    server.plan["/file"] = [sends(1000)] * 3
    error = refused(server, tmp_path / "c")
    assert "1000 bytes read" in str(error) and not error.unreachable
    assert server.plan["/file"] == []


@pytest.mark.parametrize("fault, says", [
    (status(404), "HTTP 404 Not Found"),
    (status(404, "busy\x1b[31m\x07"), r"HTTP 404 busy\x1b[31m\x07"),
    (endless, "more than 2 MB"),
    (sends(content=gzip.compress(bytes(10**8)), Content_Encoding="gzip"), "more than 2 MB"),
    (sends(content=b"x" * 3_000_000), "more than 2 MB"),
    (sends(content=b"<html>we are down</html>"), "is not the file meant"),
    (lambda handler, _: handler.wfile.write(b"\xff\x00 garbage\r\n\r\n"), ""),
    (status(302, Location="file:///etc/passwd"), "No connection adapters"),
    (status(302, Location="http://[::bad"), ""),
    (dribble(b"HTTP/1.0 200 OK\r\n\r\n"), "it sends less than 262 kB in 2 s, and is given up"),
    (dribble(b"HTTP/1.0 200 OK\r\nLong: "), "it sends less than 262 kB in 2 s, and is given up"),
])
def test_what_is_of_no_use_is_refused(fault, says, server, tmp_path):
    server.plan["/file"] = [fault] * 3
    error = refused(server, tmp_path / "a", limit=2_000_000, known_hash=f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    assert says in str(error)
    assert len(server.requests) == 1 or not says


def test_redirects_lead_anywhere_but_from_https_to_http(server, tmp_path, monkeypatch):
    pem = tmp_path / "server.pem"
    pem.write_text(CERTIFICATE)
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(pem)
    secure = server.address.replace("http:", "https:")
    server.plan["/up"] = [status(302, Location=f"{secure}/file")]
    server.plan["/down"] = [status(302, Location=f"{server.address}/file")]
    with pytest.raises(DownloadError, match="certificate verify failed") as caught:
        download(f"{secure}/file", str(tmp_path / "it"), 10**7)
    assert caught.value.unreachable
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
    assert fetch(server, tmp_path / "a", path="/up") == CONTENT
    with pytest.raises(DownloadError, match=r"redirects from https to http://127.0.0.1:.* which is refused"):
        download(f"{secure}/down", str(tmp_path / "it"), 10**7)
    assert not (tmp_path / "it").exists() and server.requests == [("/up", False), ("/file", True), ("/down", True)]


def test_a_server_that_does_not_answer_is_asked_once(server, tmp_path):
    server.plan["/file"] = [stall()]
    error = refused(server, tmp_path / "a")
    assert "nothing came for 0.5 s" in str(error) and error.unreachable and len(server.requests) == 1
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="Connection refused") as caught:
            download(f"http://127.0.0.1:{unused.getsockname()[1]}/x", str(tmp_path / "it"), 10)
    assert caught.value.unreachable


def test_a_full_disk_is_not_the_servers_fault(server, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            fetch(server, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "a/it") and os.listdir(tmp_path / "a") == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        download(f"{server.address}/file", str(tmp_path / "file/it"), 10**7)
