"""What was computed so far, a line an image, so that an evaluation can go on."""

import json
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from vgg_flax import storage
from vgg_flax.errors import VGGFlaxError

# An object is written as a whole: with each image it would be sent again.
_OBJECT_SECONDS = 10.0


class JournalError(VGGFlaxError):
    """A journal that something else has written into, or that has no room."""


class Journal:
    """Results by the index of their image, in files of JSON lines, one a process.

    Attributes:
      path: of this process's file; None: the results are kept in memory only.
      results: `{index: result}`; what earlier calls left, whichever process wrote it,
        and what was added.
    """

    def __init__(self, path: epath.Path | None, process: int = 0):
        """Reads what is there; a last line that was cut off is dropped.

        Failures (results with an `error`) are left out: they are to be tried again.

        Args:
          path: of the first process's file; those of others have their number behind.
          process: this one's number.

        Raises:
          JournalError: another line is damaged.
        """
        self.path = self._first_path = path
        if path is not None and process:
            self.path = path.with_name(f"{path.name}.{process}")
        self.results: dict[int, dict[str, Any]] = {}
        self._file: storage.RecordFile | None = None
        for file in self._files():
            for result in _lines(file):
                if "error" not in result:
                    self.results[result["index"]] = result

    def open(self) -> None:
        """Makes the file ready for `add`; when all processes have read what was there.

        Raises:
          JournalError: as when it was read.
        """
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        there = _lines(self.path) if self.path.exists() else ()
        self._file = storage.RecordFile(
            self.path,
            [result for result in there if "error" not in result],
            JournalError,
            "what it holds is kept: make room or access, then run the same command "
            "again",
            object_seconds=_OBJECT_SECONDS,
        )

    def add(self, index: int, result: dict[str, Any]) -> None:
        """Writes an image's result; it is in the file when this returns.

        Raises:
          JournalError: it cannot be written.
        """
        self.results[index] = {"index": index, **result}
        if self._file is not None:
            self._file.append(self.results[index])

    def close(self) -> None:
        """All that was added is in the file when this returns; it stays."""
        if self._file is not None:
            self._file.flush()

    def count(self) -> int:
        """How many processes' files there are."""
        return len(self._files())

    def gather(self) -> None:
        """Adds what the other processes wrote, once they have closed theirs.

        Raises:
          JournalError: a line is damaged.
        """
        for file in self._files():
            for result in _lines(file):
                if "error" not in result or result["index"] not in self.results:
                    self.results[result["index"]] = result

    def remove(self) -> None:
        """Deletes the files of all processes: their results are kept elsewhere."""
        for file in self._files():
            file.unlink()

    def _files(self) -> list[epath.Path]:
        path = self._first_path
        if path is None or not path.parent.exists():
            return []
        ours = re.compile(re.escape(path.name) + r"(\.\d+)?")
        return sorted(f for f in path.parent.iterdir() if ours.fullmatch(f.name))


def _lines(path: epath.Path) -> Iterator[dict[str, Any]]:
    """The result that each whole line of a file holds."""
    for number, line in enumerate(path.read_bytes().splitlines(True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            result = json.loads(line)
            _ = result["index"], result["key"], result["labels"], result["experiments"]
        except (ValueError, LookupError, TypeError) as error:
            raise JournalError(
                f"{path}, line {number} is damaged; delete the file to start anew"
            ) from error
        yield result
