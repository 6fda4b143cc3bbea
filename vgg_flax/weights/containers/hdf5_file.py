"""HDF5 files (Keras, KerasHub, flaxmodels): every data set of numbers, by its path.

libhdf5 only tells where the numbers lie, and does so in a process of its own, which a
damaged file may end (see `hdf5_listing`). They are read here: its decompression has
no bound, either.
"""

import atexit
import json
import math
import os
import pathlib
import subprocess
import sys
import threading
import zlib
from typing import Any

import ml_dtypes
import numpy as np

from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import mapped_file

_MAGIC = b"\x89HDF\r\n\x1a\n"
_LISTING = pathlib.Path(__file__).with_name("hdf5_listing.py")
_SECONDS = 60.0  # for a listing, which takes some milliseconds, on a slow disk


def recognises(file: mapped_file.MappedFile) -> bool:
    """Whether HDF5's magic number opens the file."""
    return file.head(len(_MAGIC)) == _MAGIC


def read(file: mapped_file.MappedFile) -> mapped_file.Content:
    """Data sets by their full path, `block1_conv1/block1_conv1_W_1:0`, and texts.

    Those that lie in one piece, as Keras writes them, are views of the file; chunked
    or compressed ones are read. Strings are left out, and links are not followed. The
    texts are the root's attributes.

    Raises:
      WeightsError: damaged, a data set that lies outside the file or is compressed by
        a plug-in, or a bomb.
    """
    tensors: dict[str, np.ndarray] = {}
    total = pieces = 0
    answer = _ask(file)
    for count, listed in enumerate(answer["datasets"], start=1):
        pieces += len(listed.get("pieces", ()))
        file.check_parts(count, "data sets")
        file.check_parts(pieces, "chunks")
        dataset = _Dataset(file, listed)
        total += dataset.work
        file.check_unfolded(total)
        tensors[listed["name"]] = dataset.read()
    return mapped_file.Content({"": tensors}, answer["texts"])


def _ask(file: mapped_file.MappedFile) -> dict[str, Any]:
    answer = LISTER.ask(file.path, file.parts_limit)
    if "refused" in answer:
        raise WeightsError(f"{file.path}: {answer['refused']}")
    if "damaged" in answer:
        raise file.damaged(f"as HDF5, {answer['damaged']}")
    return answer


class _Lister:
    """The process that runs `hdf5_listing`, from the first HDF5 file on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self._owner = 0  # a forked process must not share our pipes

    def ask(self, path: pathlib.Path, limit: int) -> dict[str, Any]:
        """The listing of a file; `{"damaged": why}` if it ends the process."""
        with self._lock:
            process = self._running()
            line, timer = "", threading.Timer(_SECONDS, process.kill)
            timer.start()
            try:
                question = {"path": str(path.absolute()), "limit": limit}
                print(json.dumps(question), file=process.stdin, flush=True)
                line = process.stdout.readline() if process.stdout else ""
            except BrokenPipeError:
                pass
            finally:  # an interrupted process must not answer the next question
                timer.cancel()
                if not line.endswith("\n"):
                    self.close()
        return json.loads(line or '{"damaged": "libhdf5 gave up on it"}')

    def close(self) -> None:
        """Ends the process."""
        if self.process and self._owner == os.getpid():
            self.process.kill()
            self.process.communicate()
        self.process = None

    def _running(self) -> subprocess.Popen[str]:
        process = self.process
        if process and self._owner == os.getpid() and process.poll() is None:
            return process
        # It finds h5py where this process does; -P: and not this folder's modules.
        search_path = os.pathsep.join(folder for folder in sys.path if folder)
        process = subprocess.Popen(
            [sys.executable, "-P", str(_LISTING)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": search_path},
        )
        self.close()
        self.process, self._owner = process, os.getpid()
        if process.stdout is None or process.stdout.readline() != "ready\n":
            self.close()
            raise WeightsError(
                f"{sys.executable} {_LISTING} does not start, and HDF5 files are read "
                "through it; find out why: python -c 'import h5py'"
            )
        return process


LISTER = _Lister()
atexit.register(LISTER.close)


class _Dataset:
    """One data set of a listing.

    Attributes:
      work: how many bytes reading it makes, those of its chunks if that is more.
    """

    def __init__(self, file: mapped_file.MappedFile, listed: dict[str, Any]):
        self._file = file
        self._listed = listed
        self._what = f"data set {listed['name']}"
        self._shape = tuple(listed["shape"])
        mapped_file.check_shape(file, self._shape, self._what)
        is_bfloat16 = listed["dtype"] == "bfloat16"
        self._dtype = np.dtype(ml_dtypes.bfloat16 if is_bfloat16 else listed["dtype"])
        self._nbytes = math.prod(self._shape) * self._dtype.itemsize
        chunks = listed.get("chunks", ())  # may be larger than the whole
        self._chunk_size = math.prod(chunks) * self._dtype.itemsize
        self.work = max(self._nbytes, self._chunk_size * len(listed.get("pieces", ())))

    def read(self) -> np.ndarray:
        """Its numbers; a view of the file if they lie there in one piece."""
        if "chunks" in self._listed:
            return self._read_chunks()
        if "offset" in self._listed:
            content = self._file.slice(self._listed["offset"], self._nbytes, self._what)
        else:
            content = np.frombuffer(bytes.fromhex(self._listed["content"]), np.uint8)
        return mapped_file.view(
            self._file, content, self._dtype, self._shape, self._what
        )

    def _read_chunks(self) -> np.ndarray:
        filters, pieces = self._listed["filters"], self._listed["pieces"]
        chunk_shape, size = self._listed["chunks"], self._chunk_size
        fill = np.frombuffer(bytes.fromhex(self._listed["fill"]), self._dtype)
        array = np.full(self._shape, fill[0], self._dtype)
        for start, offset, stored_size, mask in pieces:
            content = self._file.slice(offset, stored_size, self._what)
            for i in reversed(range(len(filters))):
                if not mask >> i & 1:
                    content = self._undo(filters[i], content, size)
            if len(content) != size:
                raise self._file.damaged(f"{self._what} has a chunk of another size")
            chunk = content.view(self._dtype).reshape(chunk_shape)
            target = array[tuple(slice(n, None) for n in start)]
            if not target.size:
                raise self._file.damaged(f"{self._what} has a chunk outside its shape")
            # A chunk at the border reaches beyond it.
            overlap = tuple(map(slice, map(min, target.shape, chunk_shape)))
            target[overlap] = chunk[overlap]
        return array

    def _undo(self, name: str, content: np.ndarray, size: int) -> np.ndarray:
        """A filter's inverse on a chunk that has `size` bytes before any filter."""
        if name == "gzip":
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
