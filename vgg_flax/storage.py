"""Files that appear whole or not at all, and JSON lines, on disks and in buckets.

Paths are local or, through etils' epath, in an object store (`gs://`). An object is
written as a whole, and has no end to write at: opened with "a" it begins anew.
"""

import contextlib
import errno
import importlib.util
import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from vgg_flax.errors import ConfigError, VGGFlaxError

Record = dict[str, Any]  # JSON-like
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # that read a scheme's paths


class StorageError(VGGFlaxError):
    """A file or directory that is full, gone or read-only."""


class RunDirectoryError(StorageError):
    """A run's directory that is full, gone or read-only."""


def is_local(path: epath.PathLike) -> bool:
    """Whether `path` is in a file system, not in an object store."""
    return "://" not in str(path)


def expanded(path: epath.PathLike) -> epath.Path:
    """With the home directory that its `~` stands for; raises StorageError for none."""
    whole = os.path.expanduser(os.fspath(path))
    if whole.startswith("~"):
        raise StorageError(
            f"{path} is in the home directory of a user who has none here; give the "
            "path in full, or ./~... for a folder of that name"
        )
    return epath.Path(whole)


def cache_folder(
    chosen: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Where is kept what can be fetched or made again.

    Args:
      chosen: this folder; None: the one in VGG_FLAX_CACHE, or `~/.cache/vgg_flax`.

    Raises:
      StorageError: it is in a home directory, and there is none.
    """
    path = chosen or os.environ.get("VGG_FLAX_CACHE") or "~/.cache/vgg_flax"
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise StorageError(
            f"no folder to keep things in: {path}: {error}; name one in the "
            "environment variable VGG_FLAX_CACHE"
        ) from error


@contextlib.contextmanager
def whole_file(
    path: epath.PathLike,
    error: type[VGGFlaxError] = StorageError,
    remedy: str = "make room or access, or name another",
    *,
    option: str = "",
) -> Iterator[pathlib.Path]:
    """A local temporary file, whose content `path` has once it is whole.

    In a file system by renaming, so that a kill leaves the old file or the new one; a
    link stays one, and what is no plain file (/dev/null) is written into.

    Args:
      path: the file; its folder is made.
      error: what is raised where it cannot be written; `path` is then as it was.
      remedy: the end of the error's message.
      option: that named the path, for the message: "--output".
    """
    local = is_local(path)
    target = epath.Path(os.path.realpath(path) if local else path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        renamed = local and not _is_device(target)
        handle, name = tempfile.mkstemp(
            dir=target.parent if renamed else None, prefix=f".{target.name}."
        )
        os.close(handle)
    except OSError as reason:
        raise _unwritten(path, error, remedy, option, reason) from reason
    temporary = pathlib.Path(name)
    try:
        yield temporary
        if renamed:
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # mkstemp's is 0600
            temporary.replace(os.fspath(target))
        else:
            with target.open("wb") as stream:
                stream.write(temporary.read_bytes())
    except OSError as reason:
        raise _unwritten(path, error, remedy, option, reason) from reason
    finally:
        temporary.unlink(missing_ok=True)


def _is_device(path: epath.PathLike) -> bool:
    """Whether a local path is there, and neither a file nor a folder, nor a link."""
    there = os.path.exists(path)
    return there and not os.path.isfile(path) and not os.path.isdir(path)


def _unwritten(
    path: epath.PathLike,
    error: type[VGGFlaxError],
    remedy: str,
    option: str,
    reason: OSError,
) -> VGGFlaxError:
    name = f"{option} {path}".strip()
    return error(f"{name} cannot be written: {reason}; {remedy}")


def read_records(path: epath.Path) -> list[Record]:
    """The records of a file; lines that a crash cut off or spoiled are left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:  # of bytes that are no text, too
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            logging.warning("%s: left out the damaged line %.60r", path, line)
    return records


class RecordFile:
    """A file of one JSON object a line that grows by whole lines."""

    def __init__(
        self,
        path: epath.Path,
        records: list[Record],
        error: type[VGGFlaxError] = RunDirectoryError,
        remedy: str = "finished checkpoints are intact: make room or access, then run "
        "again to resume",
        *,
        object_seconds: float = 0.0,
    ):
        """Lets the file hold `records`, of those it holds, and nothing else.

        Args:
          path: the file; its folder is there.
          records: JSON-like.
          error: what is raised, here and by `append`, where it cannot be written.
          remedy: the end of the error's message.
          object_seconds: how long at least between two writings of an object, which
            are of the whole of it; `flush` does not wait.
        """
        self._object_seconds, self._written = object_seconds, time.monotonic()
        self._path, self._error_type, self._remedy = path, error, remedy
        self._is_local = is_local(path)
        self._lines = [_line(record) for record in records]
        self._cut = False  # whether a failed write may have left half a line
        try:
            if not path.exists() or path.read_bytes() != self._text().encode():
                self._replace()
        except OSError as reason:
            raise self._error(reason) from reason

    def append(self, record: Record) -> None:
        """Adds a line; it is in the file when this returns, in an object when it's due.

        Raises:
          VGGFlaxError: the disk is full, or the directory is gone or read-only; of
            the type that was given.
        """
        line = _line(record)
        try:
            if self._is_local:
                with self._path.open("a") as stream:
                    stream.write("\n" * self._cut + line)
                self._cut = False
            else:
                self._lines.append(line)
                if time.monotonic() >= self._written + self._object_seconds:
                    self.flush()
        except OSError as reason:
            self._cut = True
            raise self._error(reason) from reason

    def flush(self) -> None:
        """Writes what waits for an object's next writing; errors as of `append`."""
        if self._is_local:
            return
        try:
            self._path.write_text(self._text())
        except OSError as reason:
            raise self._error(reason) from reason
        self._written = time.monotonic()

    def _text(self) -> str:
        return "".join(self._lines)

    def _replace(self) -> None:
        """In a file system by renaming, so that a kill leaves the old or the new."""
        target = self._path
        if self._is_local:
            target = target.with_name(target.name + ".new")
        target.write_text(self._text())
        if target != self._path:
            target.replace(self._path)

    def _error(self, reason: OSError) -> VGGFlaxError:
        return self._error_type(
            f"{self._path} cannot be written to: {reason}; {self._remedy}"
        )


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def check_output(flag: str, path: epath.Path) -> None:
    """Makes the folder of `path`; raises ConfigError where no file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if is_local(path) and _is_device(path):  # which is written into
            return
        # In several processes each tries a name of its own.
        tried = path.with_name(f".{path.name}.{jax.process_index()}")
        tried.write_text("tried")
        tried.unlink()
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be written: {error}") from error


def check_path(name: str, path: Any) -> None:
    """Raises ConfigError for a URL, and where the package is missing that reads a path.

    What follows an unknown scheme is not shown, since it may hold a password.
    """
    scheme, separator, _ = str(path).partition("://")
    if separator and scheme not in PACKAGES:
        known = ", ".join(f"{known}://" for known in PACKAGES)
        raise ConfigError(
            f"{name} starts with {scheme}://; expected a path, or {known}"
        )
    package = PACKAGES.get(scheme)
    # TensorFlow reads these too, where it is installed.
    if package and not any(map(importlib.util.find_spec, (package, "tensorflow"))):
        what = "'vgg-flax[gcs]'" if package == "gcsfs" else package
        raise ConfigError(f"{name} {path} needs a package: pip install {what}")
