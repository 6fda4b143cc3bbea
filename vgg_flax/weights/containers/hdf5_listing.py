"""A program that tells where HDF5 files keep their data sets: libhdf5, kept apart.

libhdf5 is written in C and takes files at their word: about one damaged file in ten
thousand ends the process. So `hdf5_file` runs this file in a process of its own and
reads the numbers itself. It says `ready`; then a question a line comes in, as JSON,
`{"path": of the file, "limit": of its parts}`, and an answer a line goes out:
`{"datasets": [...], "texts": {...}}`, the latter the root's attributes that are text,
or `{"damaged": why}`, or `{"refused": why}`. A question whose answer would take more
than its share of processor time ends the process.
"""

import json
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]

_MEMORY_LIMIT = 4 << 30  # bytes of addresses; listing takes a few hundred MB of them
_DEPTH_LIMIT = 32  # of groups in groups; libhdf5 takes longer the deeper they are
_DEFLATE, _SHUFFLE = 1, 2  # libhdf5's numbers of its filters
_LEAVE_OUT_CLASSES = (h5py.h5t.STRING, h5py.h5t.VLEN, h5py.h5t.REFERENCE)
_LETTERS_A_PART = 100  # of names and texts, which a file may repeat
# Of processor time: real files take a hundredth, and libhdf5 may follow spoiled
# addresses without end, or spend milliseconds on the type of each data set.
_SECONDS, _SECONDS_A_PART = 1.0, 0.1e-3


class Refused(Exception):
    """A sound file that holds what is not read."""


def list_file(path: str, limit: int) -> dict[str, Any]:
    """What a file holds: `datasets` and `texts`, as `main` answers.

    Args:
      path: of the file.
      limit: of its groups and data sets, and of their chunks.
    """
    letters = Letters(_LETTERS_A_PART * limit)
    with h5py.File(path, "r") as opened:
        datasets = list_datasets(opened, limit, letters)
        return {"datasets": datasets, "texts": list_texts(opened, limit, letters)}


class Letters:
    """How many there may be in names and texts."""

    def __init__(self, limit: int):
        self._limit = self._left = limit

    def spend(self, text: str) -> None:
        """Raises Refused if the texts so far are too long."""
        self._left -= len(text)
        if self._left < 0:
            raise Refused(f"its names and texts have more than {self._limit} letters")


def list_texts(opened: h5py.File, limit: int, letters: Letters) -> dict[str, str]:
    """The root's attributes that are one text each; there may be `limit`."""
    texts = {}
    if len(opened.attrs) > limit:
        raise Refused(f"it has more than {limit} attributes")
    for name in opened.attrs:
        attribute = opened.attrs.get_id(name)
        is_text = attribute.get_type().get_class() == h5py.h5t.STRING
        if attribute.shape == () and is_text:
            text = opened.attrs[name]
            is_bytes = isinstance(text, bytes)
            texts[name] = text.decode("utf-8", "replace") if is_bytes else str(text)
            letters.spend(texts[name])
    return texts


def list_datasets(
    opened: h5py.File, limit: int, letters: Letters
) -> list[dict[str, Any]]:
    """The data sets of numbers, each with its name, dtype, shape, and one of

    - `offset`: of its bytes in the file;
    - `content`: its bytes, in hex;
    - `chunks`: their shape, with `filters`, `fill` (a number's bytes, in hex) and
      `pieces`, each (its first index, offset in the file, bytes, mask of filters).

    Of objects and of pieces there may be `limit`.
    """
    datasets: list[dict[str, Any]] = []
    pieces = 0
    for name, item in _walk(opened, limit, letters):
        is_tensor = type(item) is h5py.Dataset and item.shape is not None
        if is_tensor and item.id.get_type().get_class() not in _LEAVE_OUT_CLASSES:
            listed = {
                "name": name,
                "dtype": _dtype_name(item, name),
                "shape": [int(n) for n in item.shape or ()],
                **_location(item, name, limit - pieces),
            }
            pieces += len(listed.get("pieces", ()))
            datasets.append(listed)
    return datasets


def _walk(opened: h5py.File, limit: int, letters: Letters) -> Iterator[tuple[str, Any]]:
    """Everything below the root by its path, each once; links are not followed."""
    waiting: list[tuple[str, Any, str, int]] = [("", opened, "/", 0)]
    seen: set[int] = set()
    count = 0
    while waiting:
        path, group, name, depth = waiting.pop()
        address = h5o.get_info(group.id, name.encode()).addr
        if address in seen:
            continue
        seen.add(address)
        item = group[name]  # not before: an open one takes memory
        if path:
            yield path, item
        if not isinstance(item, h5py.Group):
            continue
        if depth >= _DEPTH_LIMIT and len(item):
            raise Refused(f"it has groups in groups, more than {_DEPTH_LIMIT} deep")
        count += len(item)
        if count > limit:
            raise Refused(f"it has more than {limit} groups and data sets")
        for name in reversed(list(item)):
            if isinstance(item.get(name, getlink=True), h5py.HardLink):
                inner = f"{path}/{name}" if path else name
                letters.spend(inner)
                waiting.append((inner, item, name, depth + 1))


def _dtype_name(dataset: Any, name: str) -> str:
    kind = dataset.id.get_type()
    is_enum = kind.get_class() == h5py.h5t.ENUM
    if is_enum and kind.get_nmembers() > 2:  # bool has False and True
        raise Refused(
            f"data set {name} is of names, not of numbers; save it as float32"
        )
    dtype: np.dtype = dataset.dtype
    if dtype == np.dtype("V2") and _is_bfloat16(dataset):
        return "bfloat16"  # as Keras marks it
    # h5py reads numbers that NumPy does not have as the next wider ones.
    is_exact = h5py.h5t.py_create(dtype) == kind
    if dtype.kind not in "bfiu" or not is_exact:
        raise Refused(
            f"data set {name} has the type {dtype}, which NumPy does not have; save it "
            "as float32"
        )
    return dtype.str


def _is_bfloat16(dataset: Any) -> bool:
    if "dtype" not in dataset.attrs or dataset.attrs.get_id("dtype").shape != ():
        return False
    return dataset.attrs["dtype"] == "bfloat16"


def _location(dataset: Any, name: str, limit: int) -> dict[str, Any]:
    properties = dataset.id.get_create_plist()
    layout = properties.get_layout()
    if properties.get_external_count() or layout == h5py.h5d.VIRTUAL:
        raise Refused(f"data set {name} lies in other files; copy it into one")
    if layout == h5py.h5d.COMPACT:  # of 64 kB at most, inside the header
        return {"content": dataset[()].tobytes().hex()}
    if layout == h5py.h5d.CONTIGUOUS and dataset.id.get_offset() is not None:
        return {"offset": int(dataset.id.get_offset())}
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if set(filters) - {_DEFLATE, _SHUFFLE} or len(set(filters)) < len(filters):
        raise Refused(
            f"data set {name} passed through the HDF5 filters {filters}, of which only "
            "gzip and shuffle are read, once each; rewrite it: h5repack -f NONE OLD NEW"
        )
    pieces: list[Any] = []

    def note(info: Any) -> None:
        if len(pieces) >= limit:
            raise Refused(f"data set {name} has more than {limit} chunks")
        start = [int(n) for n in info.chunk_offset]
        pieces.append((start, info.byte_offset, info.size, info.filter_mask))

    if layout == h5py.h5d.CHUNKED:
        dataset.id.chunk_iter(note)
    return {
        "chunks": [int(n) for n in dataset.chunks or dataset.shape],
        "filters": ["gzip" if f == _DEFLATE else "shuffle" for f in filters],
        "fill": dataset.fillvalue.tobytes().hex(),
        "pieces": pieces,
    }


def main() -> None:
    """Answers until its input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        seconds = _SECONDS + _SECONDS_A_PART * question["limit"]
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        try:
            answer = list_file(**question)
        except Refused as error:
            answer = {"refused": str(error)}
        # The types by which h5py passes on what libhdf5 finds wrong.
        except (
            OSError,
            RuntimeError,
            ValueError,
            TypeError,
            LookupError,
            MemoryError,
        ) as error:
            answer = {"damaged": str(error)[:200]}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
