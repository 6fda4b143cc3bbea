"""HDF5 files (Keras, KerasHub, flaxmodels): every data set of numbers, by its path."""

import math
import zlib
from typing import Any

import ml_dtypes
import numpy as np

from vgg_flax.weights import WeightsError, mapped_file

_MAGIC = b"\x89HDF\r\n\x1a\n"
_DEFLATE, _SHUFFLE = 1, 2  # libhdf5's numbers of its filters
_LEAVE_OUT_KINDS = "SUO"  # strings and references; of numbers, b f i u are read


def recognises(file: mapped_file.MappedFile) -> bool:
    """Whether HDF5's magic number opens the file."""
    return file.head(len(_MAGIC)) == _MAGIC


def read(file: mapped_file.MappedFile) -> dict[str, np.ndarray]:
    """Data sets by their full path, `block1_conv1/block1_conv1_W_1:0`.

    Those that lie in one piece, as Keras writes them, are views of the file; chunked
    or compressed ones are read. Strings are left out, and links are not followed.

    Raises:
      WeightsError: damaged, a data set that lies outside the file or is compressed by
        a plug-in, or a bomb.
    """
    import h5py

    tensors: dict[str, np.ndarray] = {}
    total = 0

    def visit(name: str, item: Any) -> None:
        nonlocal total
        is_tensor = isinstance(item, h5py.Dataset) and item.shape is not None
        if is_tensor and item.dtype.kind not in _LEAVE_OUT_KINDS:
            reader = _Dataset(file, item, name)
            total += reader.nbytes
            file.check_unfolded(total)
            tensors[name] = reader.read()

    try:
        with h5py.File(file.path, "r") as opened:
            opened.visititems(visit)
    # The types by which h5py passes on what libhdf5 finds wrong.
    except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
        raise file.damaged(f"as HDF5, {str(error)[:200]}") from error
    return tensors


def metadata(file: mapped_file.MappedFile) -> dict[str, str]:
    """The root's attributes that are text.

    Raises:
      WeightsError: an attribute is damaged.
    """
    import h5py

    try:
        with h5py.File(file.path, "r") as opened:
            texts = {
                name: opened.attrs[name]
                for name in opened.attrs
                if h5py.check_string_dtype(opened.attrs.get_id(name).dtype)
                and opened.attrs.get_id(name).shape == ()
            }
    except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
        raise file.damaged(f"as HDF5, {str(error)[:200]}") from error
    return {
        name: text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        for name, text in texts.items()
    }


class _Dataset:
    """One data set. libhdf5 tells where its bytes lie, and they are read from there.

    Its own decompression has no bound: a chunk of a kilobyte may fill the memory.
    """

    def __init__(self, file: mapped_file.MappedFile, dataset: Any, name: str):
        self._file = file
        self._dataset = dataset
        self._what = f"data set {name}"
        self._shape = tuple(int(n) for n in dataset.shape)
        mapped_file.check_shape(file, self._shape, self._what)
        self._dtype = self._find_dtype()
        self.nbytes = math.prod(self._shape) * self._dtype.itemsize

    def read(self) -> np.ndarray:
        """Its numbers; a view of the file if they lie there in one piece."""
        import h5py

        properties = self._dataset.id.get_create_plist()
        layout = properties.get_layout()
        if properties.get_external_count() or layout == h5py.h5d.VIRTUAL:
            raise WeightsError(
                f"{self._file.path}: {self._what} lies in other files; copy it into one"
            )
        if layout == h5py.h5d.CHUNKED:
            filters = [
                properties.get_filter(i)[0] for i in range(properties.get_nfilters())
            ]
            return self._read_chunks(filters)
        if layout == h5py.h5d.COMPACT:  # of 64 kB at most, inside the header
            return np.asarray(self._dataset[()]).view(self._dtype)
        offset = self._dataset.id.get_offset()
        if offset is None:  # never written
            return self._blank()
        content = self._file.slice(offset, self.nbytes, self._what)
        return mapped_file.view(
            self._file, content, self._dtype, self._shape, self._what
        )

    def _find_dtype(self) -> np.dtype:
        import h5py

        dtype: np.dtype = self._dataset.dtype
        if dtype == np.dtype("V2") and self._dataset.attrs.get("dtype") == "bfloat16":
            return np.dtype(ml_dtypes.bfloat16)  # as Keras marks it
        # h5py reads numbers that NumPy does not have as the next wider ones.
        is_exact = h5py.h5t.py_create(dtype) == self._dataset.id.get_type()
        if dtype.kind not in "bfiu" or not is_exact:
            raise WeightsError(
                f"{self._file.path}: {self._what} has the type {dtype}, which NumPy "
                "does not have; save it as float32"
            )
        return dtype

    def _blank(self) -> np.ndarray:
        fill = np.array(self._dataset.fillvalue).view(self._dtype)
        return np.full(self._shape, fill, self._dtype)

    def _read_chunks(self, filters: list[int]) -> np.ndarray:
        unknown = set(filters) - {_DEFLATE, _SHUFFLE}
        if unknown:
            raise WeightsError(
                f"{self._file.path}: {self._what} passed through the HDF5 filters "
                f"{sorted(unknown)}, of which only gzip and shuffle are read; rewrite "
                "it: h5repack -f NONE OLD NEW"
            )
        chunk_shape = self._dataset.chunks
        size = math.prod(chunk_shape) * self._dtype.itemsize
        array, infos = self._blank(), []
        self._dataset.id.chunk_iter(infos.append)
        self._file.check_unfolded(size * len(infos))
        for info in infos:
            content = self._file.slice(info.byte_offset, info.size, self._what)
            for i in reversed(range(len(filters))):
                if not info.filter_mask >> i & 1:
                    content = self._undo(filters[i], content, size)
            if len(content) != size:
                raise self._file.damaged(f"{self._what} has a chunk of another size")
            chunk = content.view(self._dtype).reshape(chunk_shape)
            target = array[tuple(slice(start, None) for start in info.chunk_offset)]
            if not target.size:
                raise self._file.damaged(f"{self._what} has a chunk outside its shape")
            # A chunk at the border reaches beyond it.
            overlap = tuple(map(slice, map(min, target.shape, chunk_shape)))
            target[overlap] = chunk[overlap]
        return array

    def _undo(self, number: int, content: np.ndarray, size: int) -> np.ndarray:
        """A filter's inverse on a chunk that has `size` bytes before any filter."""
        if number == _DEFLATE:
            stream = zlib.decompressobj()
            try:
                inflated = stream.decompress(content.data, size + 1)
            except zlib.error as error:
                raise self._file.damaged(f"{self._what}: {error}") from error
            if not stream.eof:
                raise self._file.damaged(f"{self._what} has a chunk of another size")
            return np.frombuffer(inflated, np.uint8)
        if len(content) % self._dtype.itemsize:
            raise self._file.damaged(f"{self._what} has a chunk of another size")
        planes = content.reshape(self._dtype.itemsize, -1)
        return np.ascontiguousarray(planes.T).reshape(-1)
