"""safetensors files: the library checks the header, NumPy sees the tensors in place."""

import collections
import json
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import mapped_file

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LENGTH_SIZE = 8
_HEADER_LIMIT = 16 << 20  # a net of 10,000 tensors has 1 MB


def recognises(file: mapped_file.MappedFile) -> bool:
    """Whether a header's length of less than 4 GiB and a JSON object open the file."""
    head = file.head(_LENGTH_SIZE + 1)
    return head[4:] == b"\0\0\0\0{"


def read(file: mapped_file.MappedFile) -> mapped_file.Content:
    """All tensors, as views of the file, and the header's `__metadata__`.

    Raises:
      WeightsError: the header is damaged, a tensor is not all there, tensors overlap
        or leave holes, or a dtype is unknown.
    """
    import safetensors

    length = int.from_bytes(file.head(_LENGTH_SIZE), "little")
    if length > _HEADER_LIMIT:
        raise file.damaged(f"its header claims {length} bytes")
    header = file.slice(_LENGTH_SIZE, length, "the header")
    # The library checks all that this file relies on: offsets against dtypes and
    # shapes, no overlap, no hole, nothing beyond the end. Its NumPy tensors are
    # copies, though, and twice the size of vgg16 is too much.
    try:
        with safetensors.safe_open(str(file.path), framework="np") as opened:
            names = opened.offset_keys()
            file.check_parts(len(names), "tensors")
            parts = [opened.get_slice(name) for name in names]
            described = [(part.get_dtype(), part.get_shape()) for part in parts]
            metadata = dict(opened.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise file.damaged(str(error)) from error
    _check_names(file, header)
    tensors, offset = {}, _LENGTH_SIZE + length
    for name, (dtype_name, shape) in zip(names, described, strict=True):
        tensors[name] = _view(file, offset, name, dtype_name, shape)
        offset += tensors[name].nbytes
    return mapped_file.Content({"": tensors}, metadata)


def _view(
    file: mapped_file.MappedFile,
    offset: int,
    name: str,
    dtype_name: str,
    shape: Sequence[int],
) -> np.ndarray:
    if dtype_name not in _DTYPES:
        raise WeightsError(
            f"{file.path}: tensor {name} has the dtype {dtype_name}; expected one of "
            + ", ".join(_DTYPES)
        )
    dtype = np.dtype(_DTYPES[dtype_name])
    size = math.prod(shape) * dtype.itemsize
    content = file.slice(offset, size, f"tensor {name}")
    return mapped_file.view(file, content, dtype, shape, f"tensor {name}")


def _check_names(file: mapped_file.MappedFile, header: np.ndarray) -> None:
    """The library takes the last of two tensors of one name that share their bytes."""

    def no_doubles(pairs: list[tuple[str, Any]]) -> None:
        counts = collections.Counter(name for name, _ in pairs)
        doubles = [name for name, count in counts.items() if count > 1]
        if doubles:
            raise file.damaged(f"its header has {doubles} twice")

    json.loads(header.tobytes(), object_pairs_hook=no_doubles)
