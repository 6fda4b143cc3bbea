"""What is downloaded, bit by bit and within limits of size and time."""

import contextlib
import dataclasses
import http.client
import logging
import os
import pathlib
import queue
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO, TypeVar

from vgg_flax.errors import ConfigError
from vgg_flax.weights import urls

T = TypeVar("T")
_PIECE = 1 << 20  # bytes at once
_SILENCE = 30.0  # seconds without a byte after which a connection counts as lost
_MOST_REDIRECTS = 10


class DownloadError(Exception):
    """Why nothing came, without URLs that may hold secrets; `remedy` is what helps."""

    def __init__(self, reason: str, remedy: str = "check the name and the connection"):
        super().__init__(reason)
        self.remedy = remedy


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a download may take; environment variables set them.

    Attributes:
      answer_seconds: until a server has said what it will send (names looked up,
        connections made, redirects followed).
      seconds: in all.
      size: in bytes.
    """

    answer_seconds: int
    seconds: int
    size: int

    @classmethod
    def from_environment(cls) -> "Limits":
        """Raises ConfigError for what is no positive number."""
        return cls(
            _number("VGG_FLAX_MAX_ANSWER_SECONDS", "10"),
            _number("VGG_FLAX_MAX_DOWNLOAD_SECONDS", "21600"),
            _number("VGG_FLAX_MAX_DOWNLOAD_BYTES", "20000000000"),
        )

    def check_size(self, size: int | None) -> None:
        """Raises DownloadError for more bytes than the limit; None: not known."""
        if size is not None and size > self.size:
            raise DownloadError(
                f"more than {self.size} bytes are sent, the limit that the environment "
                "variable VGG_FLAX_MAX_DOWNLOAD_BYTES sets",
                "raise it if the file is right",
            )


def _number(name: str, default: str) -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{name}={text}: expected a whole number above 0")
    return int(text)


def within(
    limits: Limits, make: Callable[[], Generator[T, None, None]]
) -> Generator[T, None, None]:
    """What `make()` yields, the first within `answer_seconds`, all within `seconds`.

    It runs in a thread of its own, since looking up a name, connecting to each of a
    host's addresses and reading a header that comes a byte a second are bounded by
    no timeout of a socket. Where the time is over, or nobody wants more, the thread is
    told, ends with the next item, and does not keep the process from ending.

    Raises:
      DownloadError: no time is left.
    """
    items: queue.Queue[Any] = queue.Queue(maxsize=64)
    stop, end = threading.Event(), object()

    def put(item: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return items.put(item, timeout=0.1)

    def run() -> None:
        try:
            with contextlib.closing(make()) as made:
                for item in made:
                    put((item, None))
                    if stop.is_set():
                        return
            put((end, None))
        except BaseException as error:  # raised again by who asked
            put((end, error))

    start, limit = time.monotonic(), limits.answer_seconds
    name, what = "VGG_FLAX_MAX_ANSWER_SECONDS", "there is no answer"
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            left = start + limit - time.monotonic()
            try:
                if left <= 0:
                    raise queue.Empty
                item, error = items.get(timeout=left)
            except queue.Empty:
                raise DownloadError(
                    f"{what} within {limit} s, the limit that the environment variable "
                    f"{name} sets",
                    "check the connection, raise the limit if it is slow",
                ) from None
            if error is not None:
                raise error
            if item is end:
                return
            yield item
            limit = limits.seconds
            name, what = "VGG_FLAX_MAX_DOWNLOAD_SECONDS", "it does not end"
    finally:
        stop.set()
        thread.join(timeout=1)


def to_stream(
    source: Callable[[], Generator[Any, None, None]], stream: BinaryIO
) -> None:
    """Writes a source's bytes, `of_url`'s or `of_file`'s, with a bar on stderr.

    Raises:
      DownloadError: they did not come, or are too many, or too slow.
      OSError: they could not be written.
    """
    import tqdm

    limits, size = Limits.from_environment(), 0
    pieces = within(limits, source)
    with contextlib.closing(pieces):
        total = next(pieces)
        limits.check_size(total)
        with tqdm.tqdm(
            total=total, unit="B", unit_scale=True, dynamic_ncols=True
        ) as bar:
            for piece in pieces:
                size += len(piece)
                limits.check_size(size)
                stream.write(piece)
                bar.update(len(piece))
    stream.flush()


def of_file(path: pathlib.Path) -> Generator[Any, None, None]:
    """A local file's size and then its bytes in pieces; DownloadError if it has none.

    It may be on a network's disk.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            raise DownloadError("it is no regular file", "name a file")
        with path.open("rb") as stream:
            yield os.fstat(stream.fileno()).st_size
            while piece := stream.read(_PIECE):
                yield piece
    except OSError as error:
        raise DownloadError(reason(error)) from error


def of_url(url: str) -> Generator[Any, None, None]:
    """The size that a server tells, or None, and then the bytes that it sends.

    Raises:
      DownloadError: no connection, another answer than 200, a redirect to something
        else than https, fewer bytes than were told.
    """
    import urllib3

    try:
        with _unlogged(), _session() as session, _open(session, url) as answer:
            status = answer.status_code
            if status != http.HTTPStatus.OK:
                raise DownloadError(f"the server answers {_status(status)}, not 200 OK")
            size = answer.headers.get("Content-Length", "")
            encoded = "Content-Encoding" in answer.headers  # then the size is another
            yield int(size) if size.isdecimal() and not encoded else None
            # read1: what is there, where read would wait for a whole piece.
            while piece := answer.raw.read1(_PIECE, decode_content=True):
                yield piece
    # The requests' own errors are OSErrors; `ValueError`: a URL that can't be.
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
        raise DownloadError(reason(error)) from None


def _session() -> Any:
    """One that leaves redirects to `_open`."""
    import requests

    class Session(requests.Session):
        """requests reads all that comes with a redirect, if it never ends, too."""

        def get_redirect_target(self, resp: requests.Response) -> None:
            return None

    return Session()


def _open(session: Any, url: str) -> Any:
    """The answer to a GET, its body unread, after redirects from https to https."""
    parts = urllib.parse.urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    user, _, password = map(urllib.parse.unquote, userinfo.partition(":"))
    login = (user, password) if at else None
    url = parts._replace(netloc=host, fragment="").geturl()
    for _ in range(_MOST_REDIRECTS + 1):
        answer = session.get(
            url,
            auth=login,
            headers={"Accept-Encoding": "identity"},
            stream=True,
            allow_redirects=False,
            timeout=_SILENCE,
        )
        if not answer.is_redirect:
            return answer
        answer.close()
        location = answer.headers["location"].encode("latin-1").decode(errors="replace")
        target = urllib.parse.urljoin(url, location)
        if urllib.parse.urlsplit(target).scheme != "https":
            raise DownloadError(
                f"it is redirected to {urls.shown(target)}, which is not https",
                "give a URL that stays with https",
            )
        if session.should_strip_auth(url, target):
            login = None
        url = target
    raise DownloadError(
        f"it is redirected more than {_MOST_REDIRECTS} times, to {urls.shown(url)} last"
    )


def _status(code: int) -> str:
    try:
        return f"{code} {http.HTTPStatus(code).phrase}"
    except ValueError:  # not one of the standard's
        return str(code)


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps urllib3's lines, which hold tokens, out of every log; errors tell more."""
    modules = ("connection", "connectionpool", "response", "util.retry")
    logs = [logging.getLogger(f"urllib3.{module}") for module in modules]

    def is_none(record: logging.LogRecord) -> bool:
        del record
        return False

    for log in logs:
        log.addFilter(is_none)
    try:
        yield
    finally:
        for log in logs:
            log.removeFilter(is_none)


def reason(error: BaseException) -> str:
    """The innermost cause of an error of the network or a disk, in one line."""
    inner = error
    while not isinstance(inner, http.client.IncompleteRead):
        causes = (getattr(inner, "reason", None), *inner.args[:2], inner.__cause__)
        causes = (*causes, inner.__context__)
        cause = next((c for c in causes if isinstance(c, BaseException)), None)
        if cause is None:
            break
        inner = cause
    if isinstance(inner, http.client.IncompleteRead):
        return f"it breaks off: {inner}"
    if isinstance(inner, ValueError) and not isinstance(inner, OSError):
        return f"its URL is none ({type(inner).__name__})"  # the text holds the URL
    text = inner.strerror if isinstance(inner, OSError) else None
    lines = (text or str(inner)).splitlines()[:1] or [type(inner).__name__]
    return urls.all_shown(lines[0])[:200]
