"""PyTorch's files, zip and the serialisation before 1.6, without torch.

Both hold a pickle that describes tensors (see `torch_pickle`), and the tensors'
storages as plain bytes.
"""

import contextlib
import io
import math
import pathlib
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from vgg_flax import errors
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import mapped_file, torch_entries, torch_pickle

# The number whose pickle opens torch.save's old files, as that pickle spells it.
_LEGACY_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
_LEGACY_VERSION = 1001
# Where `writers` puts what it writes: torch's own name for an archive, and, in it, that
# of TorchScript's files of one's own, which `torch.load` passes over.
ROOT, EXTRA = "archive/", "extra/"
_TEXT_LIMIT = 16 << 20  # bytes; as safetensors' header
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


def is_zip(file: mapped_file.MappedFile) -> bool:
    """Whether it is a zip archive, of torch or not."""
    return file.head(4) == b"PK\x03\x04"


def is_legacy(file: mapped_file.MappedFile) -> bool:
    """Whether torch's old magic number opens the file."""
    head = file.head(30)  # after the pickle's protocol and, from 4 on, a frame's length
    return head[:1] == b"\x80" and _LEGACY_MAGIC in head


def read_zip(file: mapped_file.MappedFile) -> mapped_file.Content:
    """The state dicts of a file of torch 1.6 or later; what is stored are views.

    By where they lie in the pickle, as of `torch_entries`; what is no tensor is
    left out. The texts are those beside the tensors, in `extra/`, by name.

    Raises:
      WeightsError: damaged (each entry's crc32 is checked), not torch's, big-endian,
        or a bomb.
    """
    with contextlib.closing(_Archive(file)) as archive:
        if archive.byteorder() == b"big":
            raise _big_endian(file)
        unpickler = torch_pickle.Unpickler(file, io.BytesIO(archive.pickle()))
        entries = torch_entries.entries(file, unpickler.load_one())
        contents = {key: archive.storage(key) for key in unpickler.storages}
        texts = archive.texts()
    return mapped_file.Content(_make_arrays(file, entries, contents), texts)


def read_legacy(file: mapped_file.MappedFile) -> mapped_file.Content:
    """The state dicts, as for `read_zip`, of a file of torch before 1.6, as views.

    Five pickles (magic number, version, system, the object, the storages' keys), then
    each storage as its number of elements, int64, and its bytes.
    """
    unpickler = torch_pickle.Unpickler(
        file, io.BytesIO(file.head(torch_pickle.SIZE_LIMIT))
    )
    _, version, system = (unpickler.load_one() for _ in range(3))
    if version != _LEGACY_VERSION:
        raise file.damaged(
            f"its version is {errors.shown(version)}, not {_LEGACY_VERSION}"
        )
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _big_endian(file)
    entries = torch_entries.entries(file, unpickler.load_one())
    contents = _legacy_storages(file, unpickler, unpickler.load_one())
    return mapped_file.Content(_make_arrays(file, entries, contents), {})


def _legacy_storages(
    file: mapped_file.MappedFile, unpickler: "torch_pickle.Unpickler", keys: Any
) -> dict[str, np.ndarray]:
    """uint8 of each storage by its key."""
    contents, position = {}, unpickler.position()
    for key in keys if isinstance(keys, list) else [keys]:
        if not isinstance(key, str) or key not in unpickler.storages:
            raise file.damaged(f"nothing uses the storage {errors.shown(key)}")
        if key in contents:
            raise file.damaged(f"the storage {errors.shown(key)} is there twice")
        storage = unpickler.storages[key]
        what = f"storage {key}"
        count = int.from_bytes(file.slice(position, 8, what).tobytes(), "little")
        if count != storage.total:
            raise file.damaged(f"{what} has {count} elements, not {storage.total}")
        size = count * storage.dtype.itemsize
        contents[key] = file.slice(position + 8, size, what)
        position += 8 + len(contents[key])
    missing = sorted(unpickler.storages.keys() - contents.keys())
    if missing:
        raise file.damaged(f"storages {', '.join(missing[:5])} are missing")
    if position != file.size:
        raise file.damaged(f"{file.size - position} bytes follow the last storage")
    return contents


class _Archive:
    """torch's zip archive: `NAME/data.pkl`, `NAME/data/KEY`, `NAME/byteorder`."""

    def __init__(self, file: mapped_file.MappedFile):
        self._file = file
        try:
            self._zip = zipfile.ZipFile(file.path)
            names = self._zip.namelist()
        except _ZIP_ERRORS as error:
            raise file.damaged(f"as a zip archive, {error}") from error
        file.check_unfolded(sum(info.file_size for info in self._zip.infolist()))
        file.check_parts(len(names), "entries")
        pickles = [n for n in names if pathlib.PurePosixPath(n).name == "data.pkl"]
        if len(pickles) != 1:
            raise WeightsError(
                f"{file.path} is a zip archive, but none that torch.save wrote: it has "
                f"{', '.join(names[:4]) or 'nothing'}; if a weight file is among its "
                "entries, unpack it and give that"
            )
        self._root = pickles[0].removesuffix("data.pkl")

    def byteorder(self) -> bytes:
        """`b"little"`, `b"big"`, or nothing: early files do not say."""
        name = f"{self._root}byteorder"
        return self._entry(name).tobytes() if name in self._zip.namelist() else b""

    def pickle(self) -> bytes:
        """The pickle that describes the tensors."""
        content = self._entry(f"{self._root}data.pkl")
        limit = min(torch_pickle.SIZE_LIMIT, self._file.small_limit)
        if len(content) > limit:
            raise WeightsError(
                f"{self._file.path}: its pickle has {len(content)} bytes, more than "
                f"{limit}; if it is yours, save it anew with "
                "torch.save(model.state_dict(), path)"
            )
        return content.tobytes()

    def storage(self, key: str) -> np.ndarray:
        """uint8 of a storage, its crc32 checked."""
        return self._entry(f"{self._root}data/{key}")

    def texts(self) -> dict[str, str]:
        """The entries in `extra/` that are UTF-8 and no larger than a text would be."""
        texts, prefix = {}, f"{self._root}{EXTRA}"
        for info in self._zip.infolist():
            is_text = info.file_size <= _TEXT_LIMIT and info.filename.startswith(prefix)
            if is_text:
                content = self._entry(info.filename).tobytes()
                with contextlib.suppress(UnicodeDecodeError):
                    texts[info.filename.removeprefix(prefix)] = content.decode()
        return texts

    def close(self) -> None:
        """What was read stays valid."""
        self._zip.close()

    def _entry(self, name: str) -> np.ndarray:
        try:
            info = self._zip.getinfo(name)
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                return self._stored(info)
            if info.compress_type != zipfile.ZIP_DEFLATED:
                raise self._file.damaged(f"its entry {name} is in no form torch writes")
            return np.frombuffer(self._zip.read(info), np.uint8)
        except KeyError as error:
            raise self._file.damaged(f"it has no entry {name}") from error
        except _ZIP_ERRORS as error:
            raise self._file.damaged(f"its entry {name}: {error}") from error

    def _stored(self, info: zipfile.ZipInfo) -> np.ndarray:
        """An uncompressed entry as a view; its local header only gives its lengths."""
        what = f"its entry {info.filename}"
        header = self._file.slice(info.header_offset, 30, what).tobytes()
        name_size, extra_size = struct.unpack("<26x2H", header)
        start = info.header_offset + 30 + name_size + extra_size
        content = self._file.slice(start, info.file_size, what)
        if header[:4] != b"PK\x03\x04" or self._file.crc32(content) != info.CRC:
            raise self._file.damaged(f"{what} differs from its crc32")
        return content


def _make_arrays(
    file: mapped_file.MappedFile,
    entries: dict[str, dict[str, torch_pickle.Tensor]],
    contents: dict[str, np.ndarray],
) -> mapped_file.Entries:
    file.check_parts(sum(map(len, entries.values())), "tensors")
    arrays: mapped_file.Entries = {}
    for place, tensors in entries.items():
        arrays[place] = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor.storage, torch_pickle.Storage):
                raise file.damaged(f"tensor {name} has no storage")
            content = contents[tensor.storage.key]
            arrays[place][name] = _make_array(file, tensor, content, name)
    return arrays


def _make_array(
    file: mapped_file.MappedFile,
    tensor: torch_pickle.Tensor,
    content: np.ndarray,
    name: str,
) -> np.ndarray:
    """A view of its storage's bytes, uint8, in the tensor's shape and strides."""
    storage, offset, shape, strides = tensor
    mapped_file.check_shape(file, shape, f"tensor {name}")
    dtype, count = storage.dtype, math.prod(shape)
    is_whole = storage.total * dtype.itemsize <= len(content)
    if not (is_whole and _fits(storage, offset, shape, strides)):
        raise file.damaged(
            f"tensor {name} of shape {shape}, strides {errors.shown(strides)} and "
            f"offset {errors.shown(offset)} does not fit its storage of "
            f"{storage.length} elements of {dtype}, {len(content)} bytes"
        )
    start = (storage.start + offset) * dtype.itemsize
    end = (storage.start + storage.length) * dtype.itemsize
    elements = content[start:end].view(dtype)
    if not count:
        return elements[:0].reshape(shape)
    byte_strides = [stride * dtype.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(
        elements, shape, byte_strides, writeable=False
    )


def _fits(
    storage: torch_pickle.Storage, offset: Any, shape: tuple[int, ...], strides: Any
) -> bool:
    """Whether all elements of a tensor are in its storage."""
    if not isinstance(strides, (tuple, list)) or len(strides) != len(shape):
        return False
    if not all(torch_pickle.is_count(n) for n in (offset, *strides)):
        return False
    count = math.prod(shape)
    reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    end = offset + reach + 1 if count else offset
    # More elements than the storage has are a few repeated, by strides of zero.
    return max(end, count) <= storage.length


def _big_endian(file: mapped_file.MappedFile) -> WeightsError:
    return WeightsError(
        f"{file.path} was written on a big-endian machine; load and save it with torch "
        "on a little-endian one"
    )
