"""What was computed so far, a line an image, so that an evaluation can go on."""

import io
import json
from typing import Any

from etils import epath

from vgg_flax.config import VGGFlaxError


class JournalError(VGGFlaxError):
    """A journal that something else has written into."""


class Journal:
    """Results by the index of their image, in a file of JSON lines.

    Attributes:
      path: of the file; None: the results are kept in memory only.
      results: `{index: result}`; what earlier calls left, and what was added.
    """

    def __init__(self, path: epath.Path | None):
        """Reads what is there; a last line that was cut off is dropped.

        Raises:
          JournalError: another line is damaged.
        """
        self.path = path
        self.results: dict[int, dict[str, Any]] = {}
        self._stream: Any = io.StringIO()
        if path is None:
            return
        content = path.read_bytes() if path.exists() else b""
        whole = [line for line in content.splitlines(True) if line.endswith(b"\n")]
        for number, line in enumerate(whole, start=1):
            try:
                result = json.loads(line)
                self.results[result["index"]] = result
                _ = result["key"], result["labels"], result["experiments"]
            except (ValueError, LookupError, TypeError) as error:
                raise JournalError(
                    f"{path}, line {number} is damaged; delete the file to start anew"
                ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(whole))
        self._stream = path.open("a")

    def add(self, index: int, result: dict[str, Any]) -> None:
        """Writes an image's result; it is in the file when this returns."""
        self.results[index] = {"index": index, **result}
        if self.path is not None:
            self._stream.write(json.dumps(self.results[index]) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Closes the file, which stays."""
        self._stream.close()

    def remove(self) -> None:
        """Deletes the file: its results are kept elsewhere."""
        self.close()
        if self.path is not None:
            self.path.unlink()
