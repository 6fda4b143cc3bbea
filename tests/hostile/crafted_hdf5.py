"""HDF5 files that ask for much."""

import io
import re
import struct
from collections.abc import Callable

import h5py
import numpy as np


def hdf5(fill: Callable[[h5py.File], None], libver: str = "latest") -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w", libver=libver) as file:
        fill(file)
    return stream.getvalue()


def _long_paths(file: h5py.File) -> None:
    group = file
    for _ in range(28):
        group = group.create_group("n" * 14_000)
    for i in range(1500):
        group[f"{i}"] = np.float32(0)


def _many_datasets(file: h5py.File) -> None:
    for i in range(3000):
        file[f"{i}"] = np.float32(0)


def _many_links(file: h5py.File) -> None:
    file["w"] = np.ones(3)
    for i in range(5000):
        file[str(i)] = file["w"]


def _many_soft_links(file: h5py.File) -> None:
    file["w"] = np.ones(3)
    for i in range(5000):
        file[f"s{i}"] = h5py.SoftLink("/w")
        file[f"e{i}"] = h5py.ExternalLink("/etc/passwd", "/w")


def _wide_enum(file: h5py.File) -> None:
    file["kind"] = h5py.enum_dtype({f"{i}": i for i in range(4000)}, "i4")
    for i in range(200):
        file.create_dataset(f"d{i}", (1,), dtype=file["kind"])


def _wide_compound(file: h5py.File) -> None:
    file["kind"] = np.dtype([(f"{i}", "f4") for i in range(1200)])
    for i in range(300):
        file.create_dataset(f"d{i}", (1,), dtype=file["kind"])


def _wide_lists(file: h5py.File) -> None:
    file["kind"] = h5py.vlen_dtype(np.dtype([(f"{i}", "f4") for i in range(1200)]))
    for i in range(300):
        file.create_dataset(f"d{i}", (1,), dtype=file["kind"])


def _many_attributes(file: h5py.File) -> None:
    for i in range(5000):
        file.attrs[f"a{i}"] = "x"


def _marked(file: h5py.File) -> None:
    for i in range(1500):
        made = file.create_dataset(f"d{i}", (1,), "V2")
        made.attrs["dtype"] = "y" * 300


def _deep(file: h5py.File) -> None:
    group = file
    for _ in range(3000):
        group = group.create_group("g")


def _circle(file: h5py.File) -> None:
    file.create_group("a")["b"] = file["/"]
    file["a/a"] = file["a"]


def _chunks(file: h5py.File) -> None:
    file.create_dataset("w", data=np.zeros(60_000, "i1"), chunks=(8,))


def _bombs(file: h5py.File) -> None:
    for i in range(60):
        file.create_dataset(
            f"{i}", data=np.zeros(12 << 20, "i1"), chunks=(12 << 20,), compression=9
        )


def _bomb_below_the_limit(file: h5py.File) -> None:
    file.create_dataset(
        "w", data=np.zeros(60 << 20, "i1"), chunks=(1 << 20,), compression=9
    )


def _chunks_beyond_shapes(file: h5py.File) -> None:
    for i in range(12):
        made = file.create_dataset(
            f"{i}", (1,), "i1", maxshape=(None,), chunks=(60 << 20,), compression=9
        )
        made[0] = 1


def _sparse(file: h5py.File) -> None:
    for i in range(300):
        file.create_dataset(f"{i}", (1 << 40,), "f4", chunks=(1 << 20,))


def _nothing(file: h5py.File) -> None:
    file.create_dataset("w", (0, 1 << 40, 1 << 20), "f4")
    file.create_dataset("v", (1 << 50, 0), "f4", maxshape=(None, None))


def same_heap(count: int, length: int) -> bytes:
    """Root attributes that are all the same text, in one place."""

    def fill(file: h5py.File) -> None:
        kind = h5py.string_dtype()
        for i in range(count):
            file.attrs.create(
                f"a{i:05}", "\x01" * 20 if i else "y" * length, dtype=kind
            )

    content = hdf5(fill, "earliest")
    # A reference is: length 4, address of the heap 8, index 4.
    pattern = re.escape(struct.pack("<I", length)) + b"(.{12})"
    place = re.search(pattern, content, re.DOTALL)
    assert place is not None
    old = struct.pack("<I", 20)
    out, at = bytearray(content), 0
    count_replaced = 0
    heap = place.group(1)
    while (at := out.find(old, at)) >= 0:
        address = int.from_bytes(out[at + 4 : at + 12], "little")
        if address < len(out) and out[address : address + 4] == b"GCOL":
            out[at : at + 16] = struct.pack("<I", length) + heap
            count_replaced += 1
        at += 4
    assert count_replaced > count // 2, count_replaced
    return bytes(out)


HDF5: dict[str, Callable[[], bytes]] = {
    "long paths": lambda: hdf5(_long_paths),
    "very many data sets": lambda: hdf5(_many_datasets),
    "very many data sets, as before": lambda: hdf5(_many_datasets, "earliest"),
    "many names of one object": lambda: hdf5(_many_links),
    "links to elsewhere": lambda: hdf5(_many_soft_links),
    "a wide enumeration for many": lambda: hdf5(_wide_enum),
    "a wide record for many": lambda: hdf5(_wide_compound),
    "lists of wide records for many": lambda: hdf5(_wide_lists),
    "many attributes": lambda: hdf5(_many_attributes),
    "a long text for many attributes": lambda: same_heap(1500, 300_000),
    "marks of bfloat16": lambda: hdf5(_marked),
    "groups in groups": lambda: hdf5(_deep),
    "groups in a circle": lambda: hdf5(_circle),
    "small chunks": lambda: hdf5(_chunks),
    "bombs": lambda: hdf5(_bombs),
    "a bomb below the limit": lambda: hdf5(_bomb_below_the_limit),
    "chunks beyond shapes": lambda: hdf5(_chunks_beyond_shapes),
    "nothing where much should be": lambda: hdf5(_sparse),
    "huge shapes of nothing": lambda: hdf5(_nothing),
}
