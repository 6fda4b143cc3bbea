"""Servers on this machine that answer as they are told to, well or badly."""

import contextlib
import http.server
import pathlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest


class Handler(http.server.BaseHTTPRequestHandler):
    """Looks up what to do in its server's `answers`, and notes what was asked."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        answer = self.server.answers.get(self.path, (404, b"nothing is here"))
        if callable(answer):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                answer(self)
            self.close_connection = True
        else:
            self.answer(*answer)

    do_HEAD = do_GET

    def answer(self, code: int, content: bytes, **headers: str) -> None:
        """A whole answer; `Content_Type="text/html"` is a header."""
        self.head(code, Content_Length=str(len(content)), **headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def head(self, code: int, **headers: str) -> None:
        """The start of an answer."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def forever(self, send: Callable[[], object], seconds: float = 0) -> None:
        """Sends until the reader has gone, or the test is over."""
        while not self.server.is_over.wait(seconds):
            send()
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


Answer = tuple[int, bytes] | Callable[[Handler], object]


class Server(http.server.ThreadingHTTPServer):
    """What to answer by path, and the requests (method, path, headers) so far."""

    url: str

    def __init__(self) -> None:
        super().__init__(("localhost", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.is_over = threading.Event()

    def handle_error(self, *_: object) -> None:
        """A reader that has gone is no news."""


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server; by https if there is a context."""
    with Server() as server:
        scheme = "http" if context is None else "https"
        if context is not None:
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        server.url = f"{scheme}://localhost:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.is_over.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def serving_https(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server whose certificate's authority, in `folder`, the test's client knows."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "authority.pem"))
    monkeypatch.setenv("NO_PROXY", "localhost")
    with serving(context) as server:
        yield server


def wait_for(condition: Callable[[], object]) -> None:
    """Until it holds, half a minute at most."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
