"""A run's directory: made, tried, and its files of one JSON object a line.

Directories are local or, through etils' epath, in an object store (`gs://`).
"""

import json
import logging
import shutil
from typing import Any

from etils import epath

from vgg_flax.config import ConfigError, VGGFlaxError

Record = dict[str, Any]  # JSON-like


class RunDirectoryError(VGGFlaxError):
    """A run's directory that is full, gone or read-only."""


def prepare(workdir: epath.Path, checkpoint_bytes: int) -> None:
    """Makes the directory and sees that it can be written to and holds a checkpoint.

    Raises:
      ConfigError: it cannot.
    """
    probe = workdir / ".writable"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
        free = shutil.disk_usage(workdir).free if is_local(workdir) else None
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written to: {error}; choose another"
        ) from error
    if free is not None and free < checkpoint_bytes:
        raise ConfigError(
            f"--workdir={workdir} has {free / 2**20:,.0f} MiB free, and a checkpoint "
            f"takes {checkpoint_bytes / 2**20:,.0f} MiB; make room or choose another"
        )


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
