"""Weight files as their own tools write them, and what tests of readers share."""

import contextlib
import io
import mmap
import pathlib
import pickle
import runpy
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

# Installed with tensorboardX and tensorflow-datasets.
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests import onnx_files
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import formats

DATA = pathlib.Path(__file__).parent / "files"
TORCH_ARRAYS = runpy.run_path(str(DATA / "make_torch_files.py"))["make_arrays"]()
Arrays = dict[str, np.ndarray]


def random_arrays(*dtypes: Any) -> Arrays:
    """One array of each dtype, in odd shapes, none a multiple of four bytes."""
    rng = np.random.default_rng(0)
    arrays = {
        f"block1/{np.dtype(dtype).name}:{i}": rng.normal(scale=9, size=(3, 5, i + 1))
        .astype(np.float32)
        .astype(dtype)
        for i, dtype in enumerate(dtypes)
    }
    return arrays | {"scalar": np.array(3, np.float32), "one": np.ones(1, np.float32)}


def assert_equal(actual: Arrays, expected: Arrays) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        assert actual[name].shape == array.shape, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def is_mapped(array: np.ndarray) -> bool:
    """Whether the array's memory is a file's: the last of its bases is a mmap."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    # An array in torch's strides hangs on a helper object of NumPy's.
    base = getattr(base, "base", base)
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return isinstance(base, mmap.mmap) or (
        isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap)
    )


# One writer a format: content, and what it holds


def write_safetensors(path: pathlib.Path) -> Arrays:
    arrays = random_arrays(
        np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int64, np.uint8, bool
    )
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    return arrays


def write_torch(stem: str) -> Callable[[pathlib.Path], Arrays]:
    def write(path: pathlib.Path) -> Arrays:
        path.write_bytes((DATA / f"{stem}.pth").read_bytes())
        return TORCH_ARRAYS

    return write


def write_hdf5(**options: Any) -> Callable[[pathlib.Path], Arrays]:
    def write(path: pathlib.Path) -> Arrays:
        arrays = random_arrays(np.float32, np.float16, ">f8", np.int32, bool)
        with h5py.File(path, "w", **options) as file:
            file.attrs["layer_names"] = [b"block1"]
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
            file["model_config"] = "a string"
            file["nothing"] = h5py.Empty("f4")
        return arrays

    return write


def write_hdf5_chunked(path: pathlib.Path) -> Arrays:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(21, 13, 4)).astype(np.float32)
    arrays = {name: image + i for i, name in enumerate(("plain", "gzip", "both"))}
    arrays["big_endian"] = image.astype(">f4")
    arrays["partly"] = np.concatenate([np.arange(8.0), np.full(32, 2.5)])
    arrays["never"] = np.full((2, 3), 2.5)
    arrays["compact"] = image[0]
    arrays["compact_scalar"] = np.array(7, np.float32)
    with h5py.File(path, "w") as file:
        chunks = {"chunks": (8, 5, 3)}
        file.create_dataset("plain", data=arrays["plain"], **chunks)
        file.create_dataset("gzip", data=arrays["gzip"], compression=9, **chunks)
        for name in ("both", "big_endian"):
            file.create_dataset(
                name, data=arrays[name], compression="gzip", shuffle=True, **chunks
            )
        partly = file.create_dataset("partly", (40,), "f8", chunks=(16,), fillvalue=2.5)
        partly[:8] = arrays["partly"][:8]
        file.create_dataset("never", (2, 3), "f8", fillvalue=2.5)
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        for name in ("compact", "compact_scalar"):
            space = h5py.h5s.create_simple(arrays[name].shape or ())
            h5py.h5d.create(
                file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, compact
            ).write(h5py.h5s.ALL, h5py.h5s.ALL, arrays[name])
    return arrays


def caffe_messages(packed: bool) -> dict[str, Any]:
    """Classes for the messages of caffe.proto, with the fields that weights need."""
    repeated, optional = 3, 1  # descriptor_pb2's labels
    kinds = {"float": 2, "double": 1, "int64": 3, "int32": 5, "string": 9, "enum": 5}
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    messages = {
        "BlobShape": [(1, "dim", repeated, "int64")],
        "BlobProto": [
            (1, "num", optional, "int32"),
            (2, "channels", optional, "int32"),
            (3, "height", optional, "int32"),
            (4, "width", optional, "int32"),
            (5, "data", repeated, "float"),
            (6, "diff", repeated, "float"),
            (7, "shape", optional, "BlobShape"),
            (8, "double_data", repeated, "double"),
        ],
        "V1LayerParameter": [
            (2, "bottom", repeated, "string"),
            (3, "top", repeated, "string"),
            (4, "name", optional, "string"),
            (5, "type", optional, "enum"),
            (6, "blobs", repeated, "BlobProto"),
            (7, "blobs_lr", repeated, "float"),
        ],
        "LayerParameter": [
            (1, "name", optional, "string"),
            (2, "type", optional, "string"),
            (7, "blobs", repeated, "BlobProto"),
            (10, "phase", optional, "enum"),
        ],
        "NetParameter": [
            (1, "name", optional, "string"),
            (2, "layers", repeated, "V1LayerParameter"),
            (3, "input", repeated, "string"),
            (4, "input_dim", repeated, "int32"),
            (100, "layer", repeated, "LayerParameter"),
        ],
    }
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for number, name, label, kind in fields:
            field = message.field.add(name=name, number=number, label=label)
            if kind in kinds:
                field.type = kinds[kind]
                if label == repeated and kind != "string":
                    field.options.packed = packed and name != "input_dim"
            else:
                field.type, field.type_name = 11, f".caffe.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"caffe.{name}")
        )
        for name in messages
    }


def write_caffe(v1: bool, packed: bool = True) -> Callable[[pathlib.Path], Arrays]:
    """V1 layers with blobs of four sizes, as in the authors' files; or new ones."""

    def write(path: pathlib.Path) -> Arrays:
        net = caffe_messages(packed)["NetParameter"](name="VGG_ILSVRC_16_layers")
        net.input.append("data")
        (net.layers if v1 else net.layer).add(name="relu1_1")
        rng = np.random.default_rng(2)
        arrays = {}
        for name, shape in (("conv1_1", (8, 3, 3, 3)), ("fc6", (5, 16))):
            layer = (net.layers if v1 else net.layer).add(name=name)
            for i, sizes in enumerate((shape, shape[:1])):
                numbers = rng.normal(size=sizes).astype(np.float32)
                blob = layer.blobs.add(data=numbers.ravel().tolist())
                if v1:
                    sizes = (1,) * (4 - len(sizes)) + sizes
                    for size_name, size in zip(
                        ("num", "channels", "height", "width"), sizes, strict=True
                    ):
                        setattr(blob, size_name, size)
                else:
                    blob.shape.dim.extend(sizes)
                arrays[f"{name}/{i}"] = numbers.reshape(sizes)
        double = (net.layers if v1 else net.layer).add(name="scale").blobs.add()
        double.shape.dim.append(3)
        double.double_data.extend([1.5, 2.5, 3.5])
        arrays["scale/0"] = np.array([1.5, 2.5, 3.5])
        path.write_bytes(net.SerializeToString())
        return arrays

    return write


def write_onnx(path: pathlib.Path) -> Arrays:
    """Two stages and three FC layers, each tensor under its name by place."""
    rng, graph, arrays = np.random.default_rng(3), onnx_files.Graph(("N", 3, 8, 8)), {}

    def draw(name: str, *shape: int) -> np.ndarray:
        arrays[name] = rng.normal(size=shape).astype(np.float32)
        return arrays[name]

    for stage, channels in ((1, 3), (2, 4)):
        name = f"conv{stage}_1"
        kernel, bias = draw(f"{name}.W", 4, channels, 3, 3), draw(f"{name}.B", 4)
        graph.add("Conv", kernel, bias, pads=[1, 1, 1, 1])
        parts = [draw(f"{name}.norm.{n}", 4) for n in ("scale", "B", "mean", "var")]
        graph.add("BatchNormalization", *parts, epsilon=1e-5).add("Relu").pool()
    graph.add("Flatten")
    for name, inputs, side in (("fc6", 4, 2), ("fc7", 5, 1), ("fc8", 5, 1)):
        kernel, bias = draw(f"{name}.W", 5, inputs, side, side), draw(f"{name}.B", 5)
        graph.add("Gemm", kernel.reshape(5, -1), bias, transB=1)
        graph.add("Relu" if name < "fc8" else "Identity")
    graph.write(path)
    return arrays


WRITERS = {  # name: (format, writer)
    "safetensors": ("safetensors", write_safetensors),
    "torch_zip": ("torch_zip", write_torch("state_dict_zip")),
    "torch_zip_checkpoint": ("torch_zip", write_torch("checkpoint_zip")),
    "torch_legacy": ("torch_legacy", write_torch("state_dict_legacy")),
    "torch_legacy_checkpoint": ("torch_legacy", write_torch("checkpoint_legacy")),
    "hdf5": ("hdf5", write_hdf5()),
    "hdf5_latest": ("hdf5", write_hdf5(libver="latest")),
    "hdf5_chunked": ("hdf5", write_hdf5_chunked),
    "caffe_v1": ("caffemodel", write_caffe(v1=True)),
    "caffe_v2": ("caffemodel", write_caffe(v1=False)),
    "caffe_unpacked": ("caffemodel", write_caffe(v1=True, packed=False)),
    "onnx": ("onnx", write_onnx),
}


# One writer a container, of arrays that are given


def write_named_hdf5(path: pathlib.Path, arrays: Arrays) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def write_named_safetensors(path: pathlib.Path, arrays: Arrays) -> None:
    contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    safetensors.numpy.save_file(contiguous, path)


def write_named_caffe(path: pathlib.Path, arrays: Arrays) -> None:
    net = caffe_messages(packed=True)["NetParameter"]()
    by_layer: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():
        by_layer.setdefault(name.rpartition("/")[0], []).append(array)
    for name, blobs in by_layer.items():
        layer = net.layer.add(name=name)
        for array in blobs:
            blob = layer.blobs.add(data=array.ravel().tolist())
            blob.shape.dim.extend(array.shape)
    path.write_bytes(net.SerializeToString())


def torch_pickle(arrays: Arrays) -> tuple[bytes, dict[str, bytes]]:
    """An OrderedDict of tensors as torch pickles it, and its storages."""

    def integers(*values: int) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    content, storages = b"\x80\x02ccollections\nOrderedDict\n](", {}
    for i, (name, array) in enumerate(arrays.items()):
        strides = [s // 4 for s in np.empty(array.shape, np.float32).strides]
        content += b"](" + text(name) + b"ctorch._utils\n_rebuild_tensor\n(("
        content += text("storage") + b"ctorch\nFloatStorage\n" + text(str(i))
        content += text("cpu") + b"J" + struct.pack("<i", array.size) + b"NtQK\x00"
        content += integers(*array.shape) + integers(*strides) + b"tRe"
        storages[str(i)] = np.ascontiguousarray(array, np.float32).tobytes()
    return content + b"e\x85R.", storages


def write_named_torch_zip(path: pathlib.Path, arrays: Arrays) -> None:
    content, storages = torch_pickle(arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, storage in storages.items():
            archive.writestr(f"archive/data/{key}", storage)


def write_named_torch_legacy(path: pathlib.Path, arrays: Arrays) -> None:
    content, storages = torch_pickle(arrays)
    head = (DATA / "state_dict_legacy.pth").read_bytes()
    stream = io.BytesIO(head)
    for _ in range(3):  # magic number, version, system
        pickle.load(stream)
    content = head[: stream.tell()] + content + pickle.dumps([*storages], 2)
    for storage in storages.values():
        content += struct.pack("<q", len(storage) // 4) + storage
    path.write_bytes(content)


WRITE_NAMED: dict[str, Callable[[pathlib.Path, Arrays], None]] = {
    "safetensors": write_named_safetensors,
    "hdf5": write_named_hdf5,
    "caffemodel": write_named_caffe,
    "torch_zip": write_named_torch_zip,
    "torch_legacy": write_named_torch_legacy,
}


def refusal(path: pathlib.Path, content: bytes | None = None) -> str:
    """The message with which a file is refused; it names the file."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        formats.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@contextlib.contextmanager
def little_memory(limit: int = 4 << 20) -> Iterator[None]:
    """Asserts that what is done inside never has more than `limit` bytes at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
