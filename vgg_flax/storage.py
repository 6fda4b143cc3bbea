"""Files that appear whole or not at all, and JSON lines, on disks and in buckets.

Paths are local or, through etils' epath, in an object store (`gs://`). An object is
written as a whole, and has no end to write at: opened with "a" it begins anew.
"""

import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from vgg_flax.errors import ConfigError, VGGFlaxError

Record = dict[str, Any]  # JSON-like


class StorageError(VGGFlaxError):
    """A file or directory that is full, gone or read-only."""


class RunDirectoryError(StorageError):
    """A run's directory that is full, gone or read-only."""


def is_local(path: epath.PathLike) -> bool:
    """Whether `path` is in a file system, not in an object store."""
    return "://" not in str(path)


@contextlib.contextmanager
def whole_file(
    path: epath.PathLike,
    error: type[VGGFlaxError] = StorageError,
    remedy: str = "make room or access, or name another",
) -> Iterator[pathlib.Path]:
    """A local temporary file, whose content `path` has once it is whole.

    In a file system by renaming, so that a kill leaves the old file or the new one.

    Args:
      path: the file; its folder is made.
      error: what is raised where it cannot be written; `path` is then as it was.
      remedy: the end of the error's message.
    """
    target = epath.Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.parent if is_local(path) else None
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{target.name}.")
        os.close(handle)
    except OSError as reason:
        raise error(f"{path} cannot be written: {reason}; {remedy}") from reason
    temporary = pathlib.Path(name)
    try:
        yield temporary
        if is_local(path):
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # mkstemp's is 0600
            temporary.replace(os.fspath(target))
        else:
            target.write_bytes(temporary.read_bytes())
    except OSError as reason:
        raise error(f"{path} cannot be written: {reason}; {remedy}") from reason
    finally:
        temporary.unlink(missing_ok=True)


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
    ):
        """Lets the file hold `records`, of those it holds, and nothing else.

        Args:
          path: the file; its folder is there.
          records: JSON-like.
          error: what is raised, here and by `append`, where it cannot be written.
          remedy: the end of the error's message.
        """
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
        """Adds a line; it is in the file when this returns.

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
                self._path.write_text(self._text())
        except OSError as reason:
            self._cut = True
            raise self._error(reason) from reason

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
        there = path.exists()
        if there and not is_local(path):  # to open the object would empty it
            return
        # In several processes each tries a name of its own.
        own = path.with_name(f".{path.name}.{jax.process_index()}")
        tried = path if there else own
        with tried.open("a"):
            pass
        if not there:
            tried.unlink()
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be written: {error}") from error


def check_path(name: str, path: Any) -> None:
    """Raises ConfigError where the package is missing that reads such a path."""
    packages = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
    package = packages.get(str(path).partition("://")[0])
    # TensorFlow reads these too, where it is installed.
    if package and not any(map(importlib.util.find_spec, (package, "tensorflow"))):
        what = "'vgg-flax[gcs]'" if package == "gcsfs" else package
        raise ConfigError(f"{name} {path} needs a package: pip install {what}")
