"""What was computed so far, a line an image, so that an evaluation can go on."""

import json
import re
import zlib
from collections.abc import Iterable
from typing import Any

from etils import epath

from vgg_flax import storage
from vgg_flax.errors import VGGFlaxError

# An object is written as a whole: with each image it would be sent again.
_OBJECT_SECONDS = 10.0


class JournalError(VGGFlaxError):
    """A journal that something else has written into, or that has no room."""


Result = dict[str, Any]


class Journal:
    """Results by the index of their image, in files of JSON lines, one a process.

    A line carries a crc32 of what it says. Lines that do not are damaged, or of a
    version that wrote none; they count for nothing.

    Attributes:
      path: of this process's file; None: the results are kept in memory only.
      results: `{index: result}`; what earlier calls left, whichever process wrote it,
        and what was added.
      spoiled: how many lines of earlier calls counted for nothing.
    """

    def __init__(self, path: epath.Path | None, process: int = 0):
        """Reads what is there; a last line that was cut off is dropped.

        Failures (results with an `error`) are left out: they are to be tried again.

        Args:
          path: of the first process's file; those of others have their number behind.
          process: this one's number.
        """
        self._first_path = path
        self.path = None if path is None else self._path_of(process)
        self.results: dict[int, Result] = {}
        self.spoiled = 0
        self._file: storage.RecordFile | None = None
        for file in self._files():
            results, spoiled = _read(file)
            self.spoiled += spoiled
            self.results |= {r["index"]: r for r in results if "error" not in r}

    def forget(self, indices: Iterable[int]) -> None:
        """Drops results that are to be computed again; before `open`."""
        for index in indices:
            del self.results[index]

    def open(self) -> None:
        """Makes the file ready for `add`; when all processes have read what was there.

        Raises:
          JournalError: it cannot be written.
        """
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        there = _read(self.path)[0] if self.path.exists() else []
        self._file = storage.RecordFile(
            self.path,
            [_signed(r) for r in there if r == self.results.get(r["index"])],
            JournalError,
            "what it holds is kept: make room or access, then run the same command "
            "again",
            object_seconds=_OBJECT_SECONDS,
        )

    def add(self, index: int, result: Result) -> None:
        """Writes an image's result; it is in the file when this returns.

        Raises:
          JournalError: it cannot be written.
        """
        self.results[index] = {"index": index, **result}
        if self._file is not None:
            self._file.append(_signed(self.results[index]))

    def close(self) -> None:
        """All that was added is in the file when this returns; it stays."""
        if self._file is not None:
            self._file.flush()

    def count(self, processes: int) -> int:
        """How many of the files of so many processes there are."""
        return sum(self._path_of(i).exists() for i in range(processes))

    def gather(self, processes: int) -> None:
        """Adds what these processes wrote, once they have closed theirs.

        Files that more processes left hold nothing that is not in `results` already,
        but may hold what was forgotten.
        """
        for path in map(self._path_of, range(processes)):
            for result in _read(path)[0]:
                if "error" not in result or result["index"] not in self.results:
                    self.results[result["index"]] = result

    def remove(self) -> None:
        """Deletes the files of all processes: their results are kept elsewhere."""
        for file in self._files():
            file.unlink()

    def _path_of(self, process: int) -> epath.Path:
        path = self._first_path
        assert path is not None, "in memory only"
        return path.with_name(f"{path.name}.{process}") if process else path

    def _files(self) -> list[epath.Path]:
        path = self._first_path
        if path is None or not path.parent.exists():
            return []
        ours = re.compile(re.escape(path.name) + r"(\.\d+)?")
        return sorted(f for f in path.parent.iterdir() if ours.fullmatch(f.name))


def _read(path: epath.Path) -> tuple[list[Result], int]:
    """The results of a file's whole lines, and how many of these are spoiled."""
    results, spoiled = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            result = json.loads(line)
            if result.pop("crc32") != _crc32(result):
                raise ValueError("not what was written")
            results.append(result)
        except (ValueError, LookupError, TypeError, AttributeError):
            spoiled += 1
    return results, spoiled


def _signed(result: Result) -> Result:
    return {**result, "crc32": _crc32(result)}


def _crc32(result: Result) -> int:
    return zlib.crc32(json.dumps(result, sort_keys=True).encode())
