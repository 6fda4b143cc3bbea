"""Caffe's `.caffemodel`: protobuf's wire format by hand, its packed floats in place.

The messages and field numbers are those of Caffe's `caffe.proto`: a NetParameter has
layers, in the old form (V1LayerParameter) or the new (LayerParameter), a layer has a
name and blobs, a blob has a shape and numbers.
"""

import numpy as np

from vgg_flax.weights.containers import mapped_file, protobuf

_NET_NAME, _NET_V1_LAYER, _NET_INPUT, _NET_LAYER = 1, 2, 3, 100
_LAYER_FIELDS = {_NET_V1_LAYER: (4, 6), _NET_LAYER: (1, 7)}  # (name, blobs)
_LAYER_TAGS = {number << 3 | protobuf.LEN for number in _LAYER_FIELDS}
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
            tag, _ = protobuf.read_varint(message, position)
            if tag in _LAYER_TAGS:
                return True
            field, position = protobuf.read_field(message, position)
        except protobuf.WireError:
            return False
        is_text = field.wire_type == protobuf.LEN
        if field.number not in (_NET_NAME, _NET_INPUT) or not is_text:
            return False
        if position > 1 << 16:
            return False
    return False


def read(file: mapped_file.MappedFile) -> mapped_file.Content:
    """All blobs by layer and position, `conv1_1/0`, in the shapes the file gives.

    Old files give every blob four sizes: a bias is `[1, 1, 1, out]`.

    Raises:
      WeightsError: the wire format is damaged, numbers do not fill a blob's shape, or
        two layers have one name.
    """
    walk = protobuf.Walk(file, "a caffemodel")
    tensors: dict[str, np.ndarray] = {}
    for field in walk.fields(file.content):
        if field.number not in _LAYER_FIELDS or field.wire_type != protobuf.LEN:
            continue
        name, blobs = _read_layer(walk, field)
        for i, blob in enumerate(blobs):
            file.spend(len(name), "letters in names of blobs")
            full_name = f"{name}/{i}"
            if full_name in tensors:
                raise file.damaged(f"two layers are called {name!r}")
            tensors[full_name] = _read_blob(walk, blob, full_name)
    return mapped_file.Content({"": tensors}, {})


def _read_layer(
    walk: protobuf.Walk, layer: protobuf.Field
) -> tuple[str, list[np.ndarray]]:
    name_number, blobs_number = _LAYER_FIELDS[layer.number]
    name, blobs = "", []
    for field in walk.fields(layer.payload):
        if field.wire_type == protobuf.LEN and field.number == name_number:
            name = field.text
        elif field.wire_type == protobuf.LEN and field.number == blobs_number:
            blobs.append(field.payload)
    return name, blobs


def _read_blob(walk: protobuf.Walk, blob: np.ndarray, name: str) -> np.ndarray:
    parts: dict[int, list[np.ndarray]] = {_BLOB_DATA: [], _BLOB_DOUBLE_DATA: []}
    legacy_shape: dict[int, int] = {}
    shape: list[int] | None = None
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
        if field.number in parts and field.wire_type == protobuf.LEN:
            parts[field.number].append(field.payload)
        elif field.number == _BLOB_SHAPE and field.wire_type == protobuf.LEN:
            shape = [] if shape is None else shape
            shape += _read_dims(walk, field.payload)
        elif field.number in _BLOB_LEGACY_SHAPE and field.wire_type == protobuf.VARINT:
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


def _read_dims(walk: protobuf.Walk, message: np.ndarray) -> list[int]:
    """BlobShape: int64 `dim`s, field 1, packed or one by one."""
    return [n for f in walk.fields(message) if f.number == 1 for n in walk.integers(f)]


def _unpacked_run(
    blob: np.ndarray, position: int
) -> tuple[int, np.ndarray, int] | None:
    """A run of numbers each with a tag of its own, as early writers left them.

    Returns the field's number, the numbers' bytes, and where the run ends.
    """
    for number, dtype in _BLOB_DTYPES.items():
        wire_type = protobuf.I32 if dtype.itemsize == 4 else protobuf.I64
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
