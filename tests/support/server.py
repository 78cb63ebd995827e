"""A server on this machine that fails in every way it can."""
import http.server
import socket
import ssl
import threading
from contextlib import contextmanager

# A certificate for 127.0.0.1 that nothing trusts by default; it guards nothing.
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


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `plan[path]` is a list of faults, one for each request to come.

    A fault is a function of the handler and the file's content.
    requests: (path, whether over TLS) of each request; tls: an SSLContext, with which it speaks https on the same port
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.plan, self.requests, self.tls = {}, {}, [], None
        self.closing = threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


@contextmanager
def serving():
    """A running Server."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def setup(self):
        # As no real server does, this one speaks both on one port: a TLS handshake begins with 22.
        if self.server.tls and self.request.recv(1, socket.MSG_PEEK) == b"\x16":
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.requests.append((self.path, isinstance(self.request, ssl.SSLSocket)))
        content, faults = self.server.files.get(self.path), self.server.plan.get(self.path)
        fault = faults.pop(0) if faults else (sends() if content is not None else status(404))
        fault(self, content)

    def answer(self, code, message=None, **headers):
        self.send_response(code, message)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()


def sends(until=None, content=None, **headers):
    """The file, or another content; with `until` it breaks off after so many bytes."""
    def fault(handler, own):
        body = own if content is None else content
        handler.answer(200, Content_Length=len(body), **headers)
        handler.wfile.write(body[:until])
    return fault


def endless(handler, content):
    """Bytes without end, and without a length."""
    handler.answer(200)
    while not handler.server.closing.is_set():
        handler.wfile.write(bytes(1 << 16))


def stall(until=None):
    """Silence after `until` bytes; before any answer if it is None."""
    def fault(handler, content):
        if until is not None:
            sends(until)(handler, content)
        handler.server.closing.wait(60)
    return fault


def dribble(start):
    """`start`, then a byte now and then, each well within a time-out."""
    def fault(handler, content):
        handler.wfile.write(start)
        for _ in range(100):
            if not handler.server.closing.wait(0.1):
                handler.wfile.write(b"x")
    return fault


def status(code, message=None, **headers):
    return lambda handler, content: handler.answer(code, message, Content_Length=0, **headers)
