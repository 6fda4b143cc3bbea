"""Random access to the examples of tfrecord files, without TensorFlow.

A record is a little-endian u64 length, the length's u32 crc, the payload, and the
payload's u32 crc. The files carry no index, so each is walked once, when first read.
"""

import bisect
import functools
import itertools
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vgg_flax.data import DataError

_HEADER = struct.Struct("<QI")
_FOOTER_SIZE = 4


class TFRecordError(DataError):
    """A tfrecord file that is cut off or holds another number of records."""


class TFRecords:
    """The payloads of a split's records, in the order of TFDS' file instructions."""

    def __init__(self, file_instructions: Sequence[Any]):
        """Takes `builder.info.splits[split].file_instructions`."""
        self._files = file_instructions
        self._ends = list(itertools.accumulate(f.take for f in self._files))
        self._lock = threading.Lock()
        # One small array a file; the lock keeps threads from walking a file twice.
        self._offsets = functools.cache(_read_offsets)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        which = bisect.bisect_right(self._ends, index)
        file = self._files[which]
        within = index - (self._ends[which - 1] if which else 0) + file.skip
        path = epath.Path(file.filename)
        with self._lock:
            offsets = self._offsets(path, file.examples_in_shard)
        start, end = int(offsets[within]) + _HEADER.size, int(offsets[within + 1])
        with path.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start - _FOOTER_SIZE)


def _read_offsets(path: epath.Path, count: int) -> np.ndarray:
    """Where each record starts, and the file ends: int64 `[count + 1]`."""
    if not path.exists():
        raise TFRecordError(f"{path} is missing; copy or prepare it again")
    size = path.stat().length
    offsets = [0]
    with path.open("rb") as stream:
        while offsets[-1] < size:
            stream.seek(offsets[-1])
            header = stream.read(_HEADER.size)
            if len(header) < _HEADER.size:
                break
            length = _HEADER.unpack(header)[0]
            offsets.append(offsets[-1] + _HEADER.size + length + _FOOTER_SIZE)
    if offsets[-1] != size or len(offsets) != count + 1:
        whole = len(offsets) - 1 - (offsets[-1] > size)
        raise TFRecordError(
            f"{path}: {size} bytes hold {whole} whole records, and the data "
            f"set's description says {count}: the file is damaged or incomplete; "
            "copy or prepare it again"
        )
    return np.array(offsets, np.int64)
