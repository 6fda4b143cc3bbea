"""Caffe's `.caffemodel`: protobuf's wire format by hand, its packed floats in place.

The messages and field numbers are those of Caffe's `caffe.proto`: a NetParameter has
layers, in the old form (V1LayerParameter) or the new (LayerParameter), a layer has a
name and blobs, a blob has a shape and numbers. protobuf's own library would need the
schema compiled, and copies every float.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vgg_flax.weights.containers import mapped_file

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5  # wire types
_NET_NAME, _NET_V1_LAYER, _NET_INPUT, _NET_LAYER = 1, 2, 3, 100
_LAYER_FIELDS = {_NET_V1_LAYER: (4, 6), _NET_LAYER: (1, 7)}  # (name, blobs)
_LAYER_TAGS = {number << 3 | _LEN for number in _LAYER_FIELDS}
_BLOB_LEGACY_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
_BLOB_DATA, _BLOB_SHAPE, _BLOB_DOUBLE_DATA = 5, 7, 8
_BLOB_DTYPES = {_BLOB_DATA: np.dtype("<f4"), _BLOB_DOUBLE_DATA: np.dtype("<f8")}


def recognises(file: mapped_file.MappedFile) -> bool:
    """Whether the file opens like a NetParameter that comes to its layers soon.

    protobuf has no magic number: this is a name and inputs, if any, then a layer.
    """
    message, position = file.content, 0
    for _ in range(100):
        try:
            tag, _ = _read_varint(message, position)
            if tag in _LAYER_TAGS:
                return True
            field, position = _read_field(message, position)
        except _WireError:
            return False
        if field.number not in (_NET_NAME, _NET_INPUT) or field.wire_type != _LEN:
            return False
        if position > 1 << 16:
            return False
    return False


def read(file: mapped_file.MappedFile) -> dict[str, np.ndarray]:
    """All blobs by layer and position, `conv1_1/0`, in the shapes the file gives.

    Old files give every blob four sizes: a bias is `[1, 1, 1, out]`.

    Raises:
      WeightsError: the wire format is damaged, numbers do not fill a blob's shape, or
        two layers have one name.
    """
    walk = _Walk(file)
    tensors: dict[str, np.ndarray] = {}
    for field in walk.fields(file.content):
        if field.number not in _LAYER_FIELDS or field.wire_type != _LEN:
            continue
        name, blobs = _read_layer(walk, field)
        for i, blob in enumerate(blobs):
            full_name = f"{name}/{i}"
            if full_name in tensors:
                raise file.damaged(f"two layers are called {name!r}")
            tensors[full_name] = _read_blob(walk, blob, full_name)
    return tensors


class _WireError(Exception):
    """Bytes that are not protobuf's."""


class _Field(NamedTuple):
    number: int
    wire_type: int
    start: int  # of the payload, in the message
    payload: np.ndarray  # uint8; the varint's own bytes, for a varint
    value: int  # of a varint; 0 for others


class _Walk:
    """Through the messages of one file, with its errors and a bound on the work."""

    def __init__(self, file: mapped_file.MappedFile):
        self.file = file
        self._count = 0

    def fields(self, message: np.ndarray, position: int = 0) -> Iterator[_Field]:
        while position < len(message):
            self.count()
            try:
                field, position = _read_field(message, position)
            except _WireError as error:
                raise self.file.damaged(f"as a caffemodel, {error}") from error
            yield field

    def count(self) -> None:
        """Counts a field, or a run of them."""
        self._count += 1
        self.file.check_parts(self._count, "fields")


def _read_layer(walk: _Walk, layer: _Field) -> tuple[str, list[np.ndarray]]:
    name_number, blobs_number = _LAYER_FIELDS[layer.number]
    name, blobs = "", []
    for field in walk.fields(layer.payload):
        if field.wire_type == _LEN and field.number == name_number:
            name = field.payload.tobytes().decode("utf-8", "backslashreplace")
        elif field.wire_type == _LEN and field.number == blobs_number:
            blobs.append(field.payload)
    return name, blobs


def _read_blob(walk: _Walk, blob: np.ndarray, name: str) -> np.ndarray:
    parts: dict[int, list[np.ndarray]] = {_BLOB_DATA: [], _BLOB_DOUBLE_DATA: []}
    legacy_shape, shape = {}, None
    position = 0
    while position < len(blob):
        run = _unpacked_run(blob, position)
        if run is not None:
            walk.count()
            number, numbers, position = run
            parts[number].append(numbers)
            continue
        field = next(walk.fields(blob, position))
        position = field.start + len(field.payload)
        if field.number in parts and field.wire_type == _LEN:
            parts[field.number].append(field.payload)
        elif field.number == _BLOB_SHAPE and field.wire_type == _LEN:
            shape = [*(shape or []), *_read_dims(walk, field.payload)]
        elif field.number in _BLOB_LEGACY_SHAPE and field.wire_type == _VARINT:
            legacy_shape[field.number] = field.value
    number = _BLOB_DATA if parts[_BLOB_DATA] else _BLOB_DOUBLE_DATA
    chunks = parts[number] or [blob[:0]]
    content = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    if shape is None and legacy_shape:
        shape = [legacy_shape.get(n, 0) for n in _BLOB_LEGACY_SHAPE]
    dtype = _BLOB_DTYPES[number]
    if shape is None:
        shape = [len(content) // dtype.itemsize]
    return mapped_file.view(walk.file, content, dtype, shape, f"blob {name}")


def _read_dims(walk: _Walk, message: np.ndarray) -> list[int]:
    """BlobShape: int64 `dim`s, field 1, packed or one by one."""
    dims = []
    for field in walk.fields(message):
        if field.number == 1 and field.wire_type == _VARINT:
            dims.append(field.value)
        elif field.number == 1 and field.wire_type == _LEN:
            position = 0
            while position < len(field.payload) and len(dims) < 100:
                try:
                    value, position = _read_varint(field.payload, position)
                except _WireError as error:
                    raise walk.file.damaged(f"in a blob's shape, {error}") from error
                dims.append(value)
    return dims


def _unpacked_run(
    blob: np.ndarray, position: int
) -> tuple[int, np.ndarray, int] | None:
    """A run of numbers each with a tag of its own, as early writers left them.

    Returns the field's number, the numbers' bytes, and where the run ends.
    """
    for number, dtype in _BLOB_DTYPES.items():
        wire_type = _I32 if dtype.itemsize == 4 else _I64
        tag, row = number << 3 | wire_type, 1 + dtype.itemsize
        if blob[position] == tag:
            whole = (len(blob) - position) // row
            rows = blob[position : position + whole * row].reshape(whole, row)
            count = _leading(rows[:, 0], tag)
            if count:
                return number, rows[:count, 1:].reshape(-1), position + count * row
    return None


def _leading(tags: np.ndarray, tag: int) -> int:
    """How many of `tags` are `tag` before the first that is not."""
    count, step = 0, 64  # not all at once: the next run would look at the rest again
    while count < len(tags):
        others = np.flatnonzero(tags[count : count + step] != tag)
        if len(others):
            return count + int(others[0])
        count, step = count + step, 2 * step
    return len(tags)


def _read_field(message: np.ndarray, position: int) -> tuple[_Field, int]:
    """The field at `position`, and where the next one starts."""
    tag, start = _read_varint(message, position)
    number, wire_type = tag >> 3, tag & 7
    if not 1 <= number < 1 << 29:
        raise _WireError(f"byte {position} starts a field numbered {number}")
    value = 0
    if wire_type == _VARINT:
        value, end = _read_varint(message, start)
    elif wire_type == _LEN:
        size, start = _read_varint(message, start)
        end = start + size
    elif wire_type in (_I32, _I64):
        end = start + (4 if wire_type == _I32 else 8)
    else:
        raise _WireError(f"byte {position} starts a field of wire type {wire_type}")
    if end > len(message):
        raise _WireError(f"a field ends at byte {end} of a message of {len(message)}")
    return _Field(number, wire_type, start, message[start:end], value), end


def _read_varint(message: np.ndarray, position: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(message[position : position + 10].tolist()):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise _WireError(f"byte {position} starts a number that does not end")
