"""What is told on a terminal: lines, bars, times."""

import contextlib
import datetime
import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import tqdm

from vgg_flax import spelling


def format_time(seconds: float) -> str:
    """Seconds as people say them: "45 s", "12 min", "3.4 h", "2.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def bar(total: int, unit: str, initial: int = 0, *, active: bool = True) -> tqdm.tqdm:
    """A progress bar on stderr, which `update(n)` moves on; none off a terminal."""
    return tqdm.tqdm(
        total=total,
        initial=initial,
        unit=unit,
        dynamic_ncols=True,
        disable=None if active else True,
    )


def timestamp(seconds: float) -> str:
    """Seconds since 1970 in ISO 8601, UTC, to the millisecond."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")


def say(text: str) -> None:
    """Prints a line to stderr; of several processes the first does."""
    import jax  # takes a second, and a mistake in a flag is told without it

    if jax.process_index() == 0:
        print(spelling.line(text), file=sys.stderr)


def tell(text: str) -> None:
    """Prints a line to stderr, in any process, above a progress bar that is there."""
    tqdm.tqdm.write(spelling.line(text), file=sys.stderr)


@contextlib.contextmanager
def without_glyphs() -> Iterator[None]:
    """Lets pictures have boxes where their font lacks a letter, and says nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        yield


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """Lets work go on when nobody reads what it prints any more; that is dropped.

    A pipe's other end may close (`| head`), and so may the terminal. A character that
    the terminal's encoding has not is printed as an escape.
    """
    before = sys.stdout, sys.stderr
    texts = [stream for stream in before if isinstance(stream, io.TextIOWrapper)]
    handlings = [stream.errors for stream in texts]
    for stream in texts:
        stream.reconfigure(errors="backslashreplace")
    outliving: Any = map(_Unread, before)
    sys.stdout, sys.stderr = outliving
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before
        for stream, errors in zip(texts, handlings, strict=True):
            stream.reconfigure(errors=errors)


class _Unread:
    """A text stream that goes to nowhere once its reader has gone."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        # What the stream still holds is to go somewhere, at the end too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
