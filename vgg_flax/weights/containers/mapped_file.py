"""A weight file as bytes: mapped read-only, and seen in place as arrays.

A view costs no memory of its own: its pages are the file's, and the system may drop
them. A file must not be truncated in place while its views are in use; replacing it
by a rename is harmless.
"""

import math
import mmap
import os
import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np

from vgg_flax import errors, storage
from vgg_flax.weights import WeightsError

# What a file may unfold to, by compression or by naming the same bytes repeatedly.
# Trained weights hardly compress, tied ones are rare; a bomb is a thousand times its
# file.
_UNFOLD_FACTOR = 4
_UNFOLD_FLOOR = 64 << 20
# What reading does once for each of a file's parts (tensors, fields, chunks, objects)
# takes some microseconds, and a part of real weights has some hundred bytes. So a small
# file can ask for little work, whatever it holds.
_PART_BYTES = 128
_PARTS_FLOOR, _PARTS_LIMIT = 2000, 200_000
# An element that is copied, a letter of a name that is made: a step, of some tenths of
# a microsecond at most. A file that names what is long again and again asks for more of
# them than it has bytes.
_STEPS_A_PART = 100
_STEPS_LIMIT = 2 * _STEPS_A_PART  # for each of the parts that a file may have

# Sets of arrays, by the names that the file gives the sets ("" to an only one).
Entries = dict[str, dict[str, np.ndarray]]


class Content(NamedTuple):
    """What a reader finds in a file: as of `formats.Container`."""

    entries: Entries
    metadata: dict[str, str]


class MappedFile:
    """A file's content, and what it may cost to read: bytes, parts and steps.

    The budget is in proportion to its size, and spent as the file is read.

    Attributes:
      path: where it is.
      content: its bytes, uint8 `[size]`, read-only.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Maps `path`.

        Raises:
          WeightsError: no such file, a directory, unreadable, or empty.
        """
        self.path = pathlib.Path(storage.expanded(path))
        try:
            if self.path.is_dir():
                raise WeightsError(
                    f"{self.path} is a directory; expected one weight file, such as "
                    f"{self.path / 'model.safetensors'}"
                )
            if self.path.exists() and not self.path.is_file():  # a pipe would block
                raise WeightsError(f"{self.path} is no regular file; copy it into one")
            with self.path.open("rb") as stream:
                if not os.fstat(stream.fileno()).st_size:
                    raise WeightsError(f"{self.path} is empty; download it again")
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise WeightsError(
                f"{self.path}: no such file; give the path of a weight file"
            ) from error
        except OSError as error:
            raise WeightsError(
                f"{self.path} cannot be read: {error.strerror}; check its permissions "
                "and its disk"
            ) from error
        self.content = np.frombuffer(mapped, np.uint8)
        self._beside: dict[pathlib.Path, MappedFile] = {}
        self._parts: dict[str, int] = {}  # counted so far, by what they are
        self._spent = 0  # steps besides those

    def beside(self, location: str) -> "MappedFile":
        """A file that this one names, in its own folder or below, mapped once.

        Raises:
          WeightsError: it lies elsewhere, is not there, or cannot be read.
        """
        target = self.path
        self.spend(_STEPS_A_PART * (1 + location.count("/")), "folders in names")
        try:
            folder = self.path.parent.resolve()
            target = (folder / location).resolve()
            is_there = folder in target.parents and target.exists()
        except (ValueError, OSError, RuntimeError):  # a null byte, links in a circle
            is_there = False
        if not is_there:
            raise WeightsError(
                f"{self.path} keeps tensors in {errors.shown(location)}, which is not "
                "in its folder; put that beside it, or save both as one file"
            )
        if target not in self._beside:
            self.check_parts(len(self._beside) + 1, "files beside it")
            self._beside[target] = MappedFile(target)
        return self._beside[target]

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content)

    def head(self, count: int) -> bytes:
        """The first `count` bytes, or all there are."""
        return self.content[:count].tobytes()

    def slice(self, start: int, size: int, what: str) -> np.ndarray:
        """Bytes of the file as uint8 `[size]`, without a copy.

        Raises:
          WeightsError: they are not all in the file; `what` they would have been.
        """
        if start < 0 or size < 0 or start + size > self.size:
            raise self.damaged(
                f"{what} lies at bytes {start} to {start + size} of {self.size}"
            )
        return self.content[start : start + size]

    def crc32(self, content: np.ndarray) -> int:
        """Of uint8 bytes, as zip files store it."""
        return zlib.crc32(content.data)

    def check_unfolded(self, size: int) -> None:
        """Raises WeightsError if `size` bytes are too many to come from this file."""
        whole = self.size + sum(file.size for file in self._beside.values())
        limit = _UNFOLD_FACTOR * whole + _UNFOLD_FLOOR
        if size > limit:
            raise WeightsError(
                f"{self.path}: {whole} bytes claim to unfold to {size}, more than "
                f"{limit}: refused as a decompression bomb; if the file is sound, "
                "store it uncompressed"
            )

    @property
    def parts_limit(self) -> int:
        """How many parts of one kind a file of this size may have."""
        return min(_PARTS_FLOOR + self.size // _PART_BYTES, _PARTS_LIMIT)

    @property
    def small_limit(self) -> int:
        """How many bytes of compressed structure, not of numbers, it may unfold to."""
        return self.parts_limit * _PART_BYTES

    @property
    def steps_limit(self) -> int:
        """How many steps reading it may take."""
        return _STEPS_LIMIT * self.parts_limit

    @property
    def steps(self) -> int:
        """How many steps reading it took so far."""
        return self._spent + _STEPS_A_PART * sum(self._parts.values())

    def check_parts(self, count: int, what: str) -> None:
        """Raises WeightsError if `count` of `what` are too many for this file."""
        if count > self.parts_limit:
            raise self._too_much(self.parts_limit, what)
        self._parts[what] = max(count, self._parts.get(what, 0))
        self.spend(0, f"steps, with these {what}")

    def spend(self, steps: int, what: str) -> None:
        """Counts steps; raises WeightsError if they become too many for this file.

        Before they are made: what they would make may not fit in memory.
        """
        self._spent += steps
        if self.steps > self.steps_limit:
            raise self._too_much(self.steps_limit, what)

    def _too_much(self, limit: int, what: str) -> WeightsError:
        return WeightsError(
            f"{self.path}: {self.size} bytes have more than {limit} {what}: refused, "
            "as no weights are like that"
        )

    def damaged(self, what: str) -> WeightsError:
        """The error for a file whose structure does not hold."""
        return WeightsError(
            f"{self.path}: {what}; the file is damaged or incomplete: download or "
            "copy it again"
        )


def view(
    file: MappedFile, content: np.ndarray, dtype: Any, shape: Any, what: str
) -> np.ndarray:
    """uint8 `content` as an array of `dtype` and `shape`, without a copy.

    Raises:
      WeightsError: a shape that is none, or that does not fill the bytes.
    """
    check_shape(file, shape, what)
    dtype = np.dtype(dtype)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise file.damaged(
            f"{what} of shape {tuple(shape)} and {dtype} has {len(content)} bytes"
        )
    return content.view(dtype).reshape(shape)


def check_shape(file: MappedFile, shape: Any, what: str) -> None:
    """Raises WeightsError unless `shape` is a sequence that NumPy can have."""
    is_shape = isinstance(shape, (tuple, list)) and len(shape) <= 32
    if not is_shape or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise file.damaged(f"{what} has the shape {errors.shown(shape)}")
    # NumPy multiplies the other sizes even if one is zero.
    if math.prod(n for n in shape if n) > 1 << 48:
        raise file.damaged(f"{what} has the shape {errors.shown(tuple(shape))}")
