"""A run's directory: made, tried, and its files of one JSON object a line.

Directories are local or, through etils' epath, in an object store (`gs://`).
"""

import importlib.util
import json
import logging
from typing import Any

import jax
from etils import epath

from vgg_flax.errors import ConfigError, VGGFlaxError

Record = dict[str, Any]  # JSON-like


class RunDirectoryError(VGGFlaxError):
    """A run's directory that is full, gone or read-only."""


def is_local(path: epath.Path) -> bool:
    """Whether `path` is in a file system, not in an object store."""
    return "://" not in str(path)


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

    def __init__(self, path: epath.Path, records: list[Record]):
        """Lets the file hold `records`, of those it holds, and nothing else.

        Raises:
          RunDirectoryError: it cannot be written.
        """
        self._path = path
        self._is_local = is_local(path)
        self._lines = [_line(record) for record in records]
        self._cut = False  # whether a failed write may have left half a line
        try:
            if not path.exists() or path.read_bytes() != self._text().encode():
                self._replace()
        except OSError as error:
            raise self._error(error) from error

    def append(self, record: Record) -> None:
        """Adds a line; it is in the file when this returns.

        Raises:
          RunDirectoryError: the disk is full, or the directory is gone or read-only.
        """
        line = _line(record)
        try:
            if self._is_local:
                with self._path.open("a") as stream:
                    stream.write("\n" * self._cut + line)
                self._cut = False
            else:  # an object has no end to write at: "a" begins it anew
                self._lines.append(line)
                self._path.write_text(self._text())
        except OSError as error:
            self._cut = True
            raise self._error(error) from error

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

    def _error(self, error: OSError) -> RunDirectoryError:
        return RunDirectoryError(
            f"{self._path} cannot be written to: {error}; finished checkpoints are "
            "intact: make room or access, then run again to resume"
        )


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def check_output(flag: str, path: epath.Path) -> None:
    """Makes the folder of `path`; raises ConfigError where no file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In several processes each tries a name of its own.
        there, own = path.exists(), f".{path.name}.{jax.process_index()}"
        tried = path if there else path.with_name(own)
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
