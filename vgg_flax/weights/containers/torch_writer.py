"""Named tensors -> a state dict as `torch.save` writes it since 1.6, without torch.

A zip archive whose entries are not compressed: a pickle that describes the tensors, and
each tensor's numbers (see `torch_file`). `torch.load(weights_only=True, mmap=True)`
takes it.
"""

import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np

from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import torch_file, torch_pickle

_ZIP_HEADER = 30  # bytes before an entry's name
_ALIGNMENT = 64  # torch's, so that what it maps into memory is aligned
_STORAGES = {np.dtype(kind).name: name for name, kind in torch_pickle.STORAGES.items()}


def write(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """With `metadata` beside the tensors, where `torch_file.zip_metadata` finds it."""
    entries: dict[str, bytes | memoryview] = {"data.pkl": _state_dict(tensors)}
    entries |= {"byteorder": b"little"}
    for i, array in enumerate(tensors.values()):
        entries[f"data/{i}"] = _numbers(array)
    entries |= {"version": b"3\n"}
    entries |= {torch_file.EXTRA + key: text.encode() for key, text in metadata.items()}
    with path.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(torch_file.ROOT + name)
            start = stream.tell() + _ZIP_HEADER + len(info.filename.encode()) + 4
            gap = -start % _ALIGNMENT
            info.extra = b"FB" + struct.pack("<H", gap) + b"Z" * gap
            archive.writestr(info, content)


def _numbers(array: np.ndarray) -> memoryview:
    """In the order of C, little-endian; without a copy where they lie so."""
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return native.reshape(-1).view(np.uint8).data


def _state_dict(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle, of protocol 2: an OrderedDict of tensors, each of its own storage."""
    ordered_dict = _global("collections", "OrderedDict")
    ordered_dict += pickle.EMPTY_TUPLE + pickle.REDUCE
    content = pickle.PROTO + b"\x02" + ordered_dict + pickle.MARK
    for i, (name, array) in enumerate(tensors.items()):
        if array.dtype.name not in _STORAGES:
            raise WeightsError(
                f"{name} is of {array.dtype}, which PyTorch's files have no storage "
                f"for; expected one of {', '.join(_STORAGES)}"
            )
        storage = (
            *(_text("storage"), _global("torch", _STORAGES[array.dtype.name])),
            *(_text(str(i)), _text("cpu"), _integer(array.size)),
        )
        strides = [n // array.itemsize for n in np.empty_like(array, order="C").strides]
        rebuilt = (
            *(_tuple(storage) + pickle.BINPERSID, _integer(0)),
            *(_tuple(map(_integer, sizes)) for sizes in (array.shape, strides)),
            *(pickle.NEWFALSE, ordered_dict),  # requires_grad, backward_hooks
        )
        content += _text(name) + _global("torch._utils", "_rebuild_tensor_v2")
        content += _tuple(rebuilt) + pickle.REDUCE
    return content + pickle.SETITEMS + pickle.STOP


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    content = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def _integer(value: int) -> bytes:
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _tuple(items: Iterable[bytes]) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
