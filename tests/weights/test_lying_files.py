"""Small files that ask for much work, memory or depth, and names that are no names."""

import io
import pathlib
import pickle
import struct
import zipfile
from typing import Any

import h5py
import numpy as np
import pytest
from torchvision_net import torchvision_tensors
from weight_files import little_memory, refusal, write_named_safetensors

from vgg_flax import errors
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import formats
from vgg_flax.weights.lineages import mapping

DOUBLINGS = 40  # a value that holds one value twice, so many times over


def doubled() -> bytes:
    """A pickled list whose `repr` has a trillion characters."""
    return b"]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(DOUBLINGS))


def zipped(content: bytes, **entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
        for name, entry in entries.items():
            archive.writestr(f"archive/{name}", entry)
    return stream.getvalue()


def tensor_of(shape: bytes, strides: bytes = b"(K\x01t") -> bytes:
    """{"w": a tensor of float32} with a shape and strides as they are pickled."""
    return (
        b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\n"
        b"FloatStorage\nU\x011U\x03cpuK\x01tQK\x00" + shape + strides + b"tRs."
    )


HUGE = b"\x8b" + struct.pack("<i", 5000) + b"\x7f" * 5000  # 12,000 digits

PICKLES = {
    "a shape without end": tensor_of(doubled()),
    "strides without end": tensor_of(b"(K\x01t", doubled()),
    "a shape of a number of many digits": tensor_of(b"(" + HUGE + b"t"),
    "strides of a number of many digits": tensor_of(b"(K\x01t", b"(" + HUGE + b"t"),
    "nothing but marks": b"\x80\x02" + b"(" * (3 << 20) + b".",
    "a name of two million letters, often": (
        b"\x80\x02}X" + struct.pack("<i", 120_000) + b"n" * 120_000
        + b"}(" + b"".join(b"X\x04\x00\x00\x00%04d}" % i for i in range(3000)) + b"us."
    ),
    "a list without end": b"\x80\x02" + doubled() + b".",
    "a key without end": b"\x80\x02}" + doubled() + b"Ns.",
    "an object without end": b"\x80\x02cx\ny\n" + doubled() + b"\x85R.",
}  # fmt: skip


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_is_refused_in_little_memory(what: str, tmp_path: pathlib.Path):
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(PICKLES[what], **{"data/1": bytes(4)}))
    with little_memory(24 << 20):
        assert len(refusal(path)) < 1000


def test_a_file_holds_tensors_in_proportion_to_its_size(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    write_named_safetensors(path, {f"{i}": np.zeros(0, "f4") for i in range(5000)})
    assert "tensors: refused" in refusal(path)
    write_named_safetensors(path, {f"{i}": np.zeros(99, "f4") for i in range(5000)})
    assert len(formats.read(path).tensors) == 5000
    again = b"".join(b"X\x04\x00\x00\x00%04dh\x01s" % i for i in range(5000))
    content = tensor_of(b"(K\x01t")[:-2] + b"q\x01s" + again + b"."
    assert "tensors: refused" in refusal(path, zipped(content, **{"data/1": bytes(4)}))


def test_alternating_fields_of_a_caffemodel(tmp_path: pathlib.Path):
    # data and double_data, one number at a time: each a run of its own.
    numbers = (b"\x2d" + bytes(4) + b"\x41" + bytes(8)) * 40_000
    blob = b"\x3a" + varint(len(numbers)) + numbers
    layer = b"\x0a\x01x" + blob
    path = tmp_path / "x.caffemodel"
    assert "fields: refused" in refusal(path, b"\xa2\x06" + varint(len(layer)) + layer)


def varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def test_groups_and_chunks_of_an_hdf5_file(tmp_path: pathlib.Path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as opened:
        group = opened
        for _ in range(3000):
            group = group.create_group("g")
        group["w"] = np.ones(3)
    assert "groups in groups" in refusal(path)
    with h5py.File(path, "w") as opened:
        opened["w"] = np.ones(3)
        for i in range(20_000):  # names of one object
            opened[str(i)] = opened["w"]
    assert "groups and data sets" in refusal(path)
    with h5py.File(path, "w") as opened:
        opened.create_dataset("w", data=np.zeros(60_000, "i1"), chunks=(2,))
    assert "chunks" in refusal(path)
    with h5py.File(path, "w") as opened:
        twice = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        twice.set_chunk((100,))
        twice.set_deflate(9)
        twice.set_deflate(9)
        space = h5py.h5s.create_simple((1000,))
        h5py.h5d.create(opened.id, b"w", h5py.h5t.NATIVE_FLOAT, space, twice)
    assert "once each" in refusal(path)


def test_hard_links_in_a_circle_are_seen_once(tmp_path: pathlib.Path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as opened:
        opened.create_group("a")["b"] = opened["/"]
        opened["a/w"] = np.ones(3)
        opened["v"] = opened["a/w"]
        opened["soft"] = h5py.SoftLink("/a/w")
    assert [*formats.read(path).tensors] == ["a/w"]


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "x" * 100_000, "\u202eabc"])
def test_names_are_shown_escaped_and_cut(name: str, tmp_path: pathlib.Path):
    tensors = {**torchvision_tensors(), f"features.{name}": np.ones(2, np.float32)}
    with pytest.raises(WeightsError) as caught:
        mapping.to_weights(tensors)
    message = str(caught.value)
    assert "unexpected" in message
    assert message.isprintable() and len(message) <= 4000
    path = tmp_path / "x.safetensors"
    write_named_safetensors(path, {name: np.ones(1, np.float32)})
    with pytest.raises(WeightsError) as caught:
        mapping.to_weights(formats.read(path).tensors)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 4000


VALUES: list[Any] = [3, "text", [1, (2, {"a": None})], 10**5000, "\n\x1b", b"x" * 9999]


def test_values_are_shown_in_a_line() -> None:
    assert [errors.shown(v) for v in VALUES[:3]] == [*map(repr, VALUES[:3])]
    for value in VALUES:
        assert errors.shown(value).isprintable() and len(errors.shown(value)) <= 200
    assert len(errors.printable("\u202e" * 9999)) <= 4000
    deep = pickle.loads(b"\x80\x02" + doubled() + b".")
    assert len(errors.shown(deep)) <= 200


@pytest.mark.parametrize(
    "shape", [(0, 3, 3, 3), (4, 0, 3, 3), (4, 3, 0, 0), (4, 3, 3), ()]
)
def test_an_empty_or_flat_first_kernel_is_an_error(shape: tuple[int, ...]) -> None:
    tensors = torchvision_tensors()
    tensors["features.0.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(WeightsError):
        mapping.to_weights(tensors)


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 100_000, "{}", "[]", "3", "null", '{"model": []}', '"' + "x" * 9999),
        '{"model": {}, "preprocessing": {}, "train_scale": [1e999, 2]}',
        '{"bgr": true}',
    ],
    ids=lambda text: text[:12],
)
def test_our_own_metadata_is_a_strangers_too(text: str) -> None:
    with pytest.raises(WeightsError, match="damaged"):
        mapping.to_weights(torchvision_tensors(), metadata={"vgg_flax": text})
