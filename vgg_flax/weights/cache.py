"""A folder of weight files, each of which was read before it came in."""

import contextlib
import fcntl
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterator
from typing import BinaryIO

_PREFIX = ".partial-"
_STALE_SECONDS = 600.0  # earlier versions gave up after 30 s without a byte


@contextlib.contextmanager
def partial(cache: pathlib.Path) -> Iterator[tuple[pathlib.Path, BinaryIO]]:
    """A new file, to be filled and then renamed to where it belongs in the cache.

    It is locked as long as its process lives, and is gone after the block. What killed
    downloads have left, which nobody locks, is removed.

    Raises:
      OSError: the cache cannot be written to.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for path in cache.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), path.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    while True:
        path = cache / f"{_PREFIX}{secrets.token_hex(8)}"
        try:
            with path.open("xb") as stream:
                if _is_locked(stream, path):
                    yield path, stream
                    return
        finally:
            path.unlink(missing_ok=True)


def _is_locked(stream: BinaryIO, path: pathlib.Path) -> bool:
    """Locks a new file; False where another process just took it for a leftover."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nobody removes it either
        return True
    return path.exists()


def remove_stale(parent: pathlib.Path, pattern: str = f"{_PREFIX}*") -> None:
    """Removes leftovers of others' downloads, which lock nothing, by their age."""
    before = time.time() - _STALE_SECONDS
    for path in parent.glob(pattern):
        with contextlib.suppress(OSError):
            inside = path.rglob("*") if path.is_dir() else ()
            if max(p.stat().st_mtime for p in (path, *inside)) < before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
