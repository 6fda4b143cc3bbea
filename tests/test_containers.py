"""Weight files as their own tools write them, and what happens to damaged ones.

Every format goes through the same tests: what was saved comes back, under any file
name; no mutation of a file ends otherwise than in a WeightsError or a whole read.
"""

import builtins
import gzip
import hashlib
import io
import json
import mmap
import os
import pathlib
import pickle
import runpy
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

# Installed with tensorboardX and tensorflow-datasets.
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from vgg_flax.weights import WeightsError, containers

DATA = pathlib.Path(__file__).parent / "data"
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


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


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
}
every_writer = pytest.mark.parametrize("writer", WRITERS)


@every_writer
def test_what_was_saved_comes_back_under_any_name(writer: str, tmp_path: pathlib.Path):
    file_format, write = WRITERS[writer]
    for name in ("weights", "weights.txt", "weights.h5", "weights.pth"):
        path = tmp_path / name
        arrays = write(path)
        found = containers.read(path)
        assert_equal(found.tensors, arrays)
        assert found.format == file_format
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@every_writer
def test_tensors_are_read_only_views_of_the_file(writer: str, tmp_path: pathlib.Path):
    if writer in ("hdf5_chunked", "caffe_unpacked"):  # not in one piece
        return
    path = tmp_path / "weights"
    WRITERS[writer][1](path)
    found = containers.read(path)
    path.unlink()  # a replaced file does not change what was read from it
    for name, array in found.tensors.items():
        assert not array.size or is_mapped(array), name
        assert not array.flags.writeable, name


def test_views_know_each_other(tmp_path: pathlib.Path):
    path = tmp_path / "weights"
    write_torch("state_dict_zip")(path)
    found = containers.read(path).tensors
    assert np.shares_memory(found["shared"], found["shared_part"])


def test_every_reader_has_files_here():
    formats = {file_format for file_format, _ in WRITERS.values()}
    assert formats == {reader.format for reader in containers.READERS}


def test_keras_marks_bfloat16(tmp_path: pathlib.Path):
    path = tmp_path / "weights.h5"
    array = np.arange(6).astype(ml_dtypes.bfloat16)
    with h5py.File(path, "w") as file:
        file.create_dataset("kernel", data=array).attrs["dtype"] = "bfloat16"
    assert_equal(containers.read(path).tensors, {"kernel": array})


# torch itself


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_saves_and_we_read(is_zip: bool, protocol: int, tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)
    )
    state = net.state_dict()
    expected = {name: tensor.numpy() for name, tensor in state.items()}
    by_name = dict(net.named_parameters())
    for i, (value, arrays) in enumerate(
        [
            (state, expected),
            (dict(state), expected),
            ({"model": state, "args": ("a", 1, {"b": [2.0]})}, expected),
            (by_name, {name: expected[name] for name in by_name}),
        ]
    ):
        path = tmp_path / f"{i}.pth"
        torch.save(
            value,
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=is_zip,
        )
        found = containers.read(path)
        assert_equal(found.tensors, arrays)
        assert found.format == ("torch_zip" if is_zip else "torch_legacy")


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_is_no_state_dict_says_so(is_zip: bool, tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(2, 3)
    state, path = net.state_dict(), tmp_path / "x.pth"
    for value, words in [
        (net, "torch.nn.modules.linear.Linear"),
        ([state], "holds a list"),
        (net.weight, "not a dict of tensors"),
        ({"epoch": 1}, "holds no tensors"),
        ({"net": state, "ema": state}, "several dicts of tensors, ['ema', 'net']"),
        ({"net": state, "device": torch.device("cpu")}, "torch.device"),
    ]:
        torch.save(value, path, _use_new_zipfile_serialization=is_zip)
        assert words in refusal(path)


# Pickles by hand


def tensor_pickle(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    total: int = 6,
    storage: bytes = b"FloatStorage",
    prefix: bytes = b"",
) -> bytes:
    """{"weight": tensor} in an OrderedDict as Python 2 pickled it, by its items."""

    def integers(*values: int) -> bytes:
        return b"".join(b"J" + struct.pack("<i", value) for value in values)

    tensor = (
        b"ctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\n" + storage + b"\n"
        b"U\x011U\x03cpu" + integers(total) + b"NtQ" + integers(offset) + b"("
        b"" + integers(*shape) + b"t(" + integers(*strides) + b"ttR"
    )
    items = b"](](U\x06weight" + tensor + b"ee"
    return b"\x80\x02" + prefix + b"ccollections\nOrderedDict\n" + items + b"\x85R."


def zip_file(content: bytes, storage: bytes = bytes(24), **entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/1", storage)
        for name, entry in entries.items():
            archive.writestr(f"archive/{name}", entry)
    return stream.getvalue()


def legacy_file(content: bytes, storage: bytes = bytes(24)) -> bytes:
    head = (DATA / "state_dict_legacy.pth").read_bytes()
    stream = io.BytesIO(head)
    for _ in range(3):  # magic number, version, system: numbers and strings only
        pickle.load(stream)
    keys = pickle.dumps(["1"], 2)
    count = struct.pack("<q", len(storage) // 4)
    return head[: stream.tell()] + content + keys + count + storage


FILES = {"zip": zip_file, "legacy": legacy_file}
both_files = pytest.mark.parametrize("file", FILES.values(), ids=FILES)


def refusal(path: pathlib.Path, content: bytes | None = None) -> str:
    """The message with which a file is refused; it names the file."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        containers.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@both_files
def test_a_state_dict_of_python_2(file: Any, tmp_path: pathlib.Path):
    path = tmp_path / "vgg.pth"
    array = np.arange(6, dtype=np.float32)
    path.write_bytes(file(tensor_pickle(), array.tobytes()))
    assert_equal(containers.read(path).tensors, {"weight": array.reshape(2, 3)})
    path.write_bytes(file(tensor_pickle((2,), (3,), offset=1), array.tobytes()))
    assert_equal(containers.read(path).tensors, {"weight": array[[1, 4]]})


@both_files
@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**31 - 1},
        {"strides": (4, 1)},
        {"strides": (-3, 1)},
        {"strides": (3,)},
        {"strides": (0, 0), "shape": (3000, 3000)},  # nine million of six elements
        {"strides": (0, 0), "shape": (2**31 - 1, 2**31 - 1)},
        {"shape": (3, 3)},
        {"shape": (-2, -3)},
        {"shape": (0, -1)},
        {"shape": (0, 2**31 - 1), "offset": 7},
        {"total": 7},
        {"total": -1},
        {"storage": b"DoubleStorage"},
        {"storage": b"ComplexFloatStorage"},
    ],
    ids=str,
)
def test_a_tensor_outside_its_storage(file: Any, wrong: Any, tmp_path: pathlib.Path):
    refusal(tmp_path / "x.pth", file(tensor_pickle(**wrong)))


class Call:
    """Pickles as `function(*args)`."""

    def __init__(self, function: Any, *args: Any):
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


@both_files
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_that_runs_code_runs_nothing(
    file: Any, protocol: int, inside: bool, tmp_path: pathlib.Path
):
    marker = tmp_path / "marker"
    module = {2: "__builtin__", 4: "builtins"}[protocol]  # 2 spells it as Python 2
    for call, name in [
        (Call(os.system, f"touch {marker}"), "posix.system"),
        (Call(os.mkdir, str(marker)), "posix.mkdir"),
        (Call(builtins.eval, f"open({str(marker)!r}, 'w').close()"), f"{module}.eval"),
    ]:
        value = {"state_dict": {}, "epoch": call} if inside else call
        content = pickle.dumps(value, protocol)
        message = refusal(tmp_path / "x.pth", file(content))
        assert f"asks for {name}," in message and "nothing of it was run" in message
        assert not marker.exists()
        pickle.loads(content)  # the machine that is not ours runs it
        assert marker.exists()
        marker.rmdir() if marker.is_dir() else marker.unlink()


HOSTILE = {  # instructions before the dict, and words of the refusal
    b"ctorch._utils\n_rebuild_tensor\n}U\x01aK\x01sb0": "takes none",  # BUILD
    b"ccollections\nOrderedDict\n)\x81}U\x01aK\x01sb0": "instruction NEWOBJ",
    b"\x82\x01": "instruction EXT1",
    b"\x96\xff\xff\xff\xff\xff\x00\x00\x00": "instruction BYTEARRAY8",  # a terabyte
    b"\x8f0": "instruction EMPTY_SET",
    b"\xff": "instruction 0xff",
    b"Papers\n": "instruction PERSID",
    # Hashing a tuple in a tuple, a million times over, overflows C's stack.
    b"})" + b"\x85" * 1000 + b"Ns0": "key is a tuple",
    b"}(" + b")" + b"\x85" * 1000 + b"Nu0": "key is a tuple",
    b"ccollections\nOrderedDict\n](])\x85ae\x85R0": "cannot be read",
    b"\x8c\xff": "cannot be read",
    b"h\x63": "cannot be read",  # a memo entry that nothing put there
    b"\x80\x63": "unsupported pickle protocol",
    b"I" + b"9" * 5000 + b"\n0": "cannot be read",
    b"K\x01r\xff\xff\xff\x7f0": "",  # an index that C's machine takes 32 GB for
    b"](" * 50_000 + b"1" * 50_000 + b"0": "",
}


@both_files
@pytest.mark.parametrize("prefix", HOSTILE, ids=lambda prefix: repr(prefix[:12]))
def test_a_hostile_pickle_is_refused_or_harmless(
    file: Any, prefix: bytes, tmp_path: pathlib.Path
):
    path = tmp_path / "x.pth"
    path.write_bytes(file(tensor_pickle(prefix=prefix)))
    if HOSTILE[prefix]:
        assert HOSTILE[prefix] in refusal(path)
    else:
        expected = {"weight": np.zeros((2, 3), np.float32)}
        assert_equal(containers.read(path).tensors, expected)


def test_other_zip_archives_say_what_they_hold(tmp_path: pathlib.Path):
    path = tmp_path / "x.pth"
    with path.open("wb") as stream:
        np.savez(stream, kernel=np.ones(3))
    assert "kernel.npy" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", b"x")
    assert "model.weights.h5; if" in refusal(path)
    with zipfile.ZipFile(path, "w"):
        pass
    refusal(path)


def test_big_endian_is_refused(tmp_path: pathlib.Path):
    path = tmp_path / "x.pth"
    content = zip_file(tensor_pickle(), byteorder=b"big")
    assert "big-endian" in refusal(path, content)
    content = legacy_file(tensor_pickle())
    little = pickle.dumps({"little_endian": True}, 2)[2:-1]
    assert b"little_endianq\x02\x88" in content, little
    content = content.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
    assert "big-endian" in refusal(path, content)


def test_deflated_entries_are_read(tmp_path: pathlib.Path):
    path = tmp_path / "x.pth"
    with (
        zipfile.ZipFile(DATA / "state_dict_zip.pth") as stored,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    assert_equal(containers.read(path).tensors, TORCH_ARRAYS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle())
    refusal(path)


# Bombs


def test_a_zip_bomb_is_not_unpacked(tmp_path: pathlib.Path):
    path, zeros = tmp_path / "x.pth", bytes(80 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle((20 << 20,), (1,), 0))
        archive.writestr("archive/data/1", zeros)
    assert "bomb" in refusal(path)


def test_an_hdf5_bomb_is_not_unpacked(tmp_path: pathlib.Path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:  # never written: a terabyte of zeros
        file.create_dataset("kernel", (1 << 38,), "f4", chunks=True, compression="gzip")
    assert "bomb" in refusal(path)
    with h5py.File(path, "w") as file:  # each alone is small enough
        for i in range(20):
            file.create_dataset(f"kernel{i}", (1 << 22,), "f4")
    assert "bomb" in refusal(path)
    with h5py.File(path, "w") as file:  # a chunk that holds more than it says
        dataset = file.create_dataset("kernel", (4,), "f4", chunks=(4,), compression=1)
        dataset.id.write_direct_chunk((0,), zlib.compress(bytes(40 << 20)))
    tracemalloc.start()
    try:
        assert "another size" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_hdf5_that_lies_elsewhere_or_went_through_a_plug_in(tmp_path: pathlib.Path):
    path = tmp_path / "x.h5"
    (tmp_path / "secret").write_bytes(bytes(16))
    with h5py.File(path, "w") as file:
        external = [(str(tmp_path / "secret"), 0, 16)]
        file.create_dataset("kernel", (4,), "f4", external=external)
    assert "other files" in refusal(path)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "kernel", (4,))
        file.create_virtual_dataset("kernel", layout)
    assert "other files" in refusal(path)
    with h5py.File(path, "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "kernel")
        file["soft"] = h5py.SoftLink("/nowhere")
    assert "no tensors" in refusal(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("kernel", data=np.ones(9), compression="lzf")
    assert "h5repack" in refusal(path)


# Structure


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',  # overlap
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',  # hole
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',  # bytes left over
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',  # beyond the end
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,12]}}',  # not its shape
        '{"a":{"dtype":"F33","shape":[3],"data_offsets":[0,12]}}',
        '{"a":{"dtype":"F8_E8M0","shape":[12],"data_offsets":[0,12]}}',
        '{"a":{"dtype":"F32","shape":[-3],"data_offsets":[0,12]}}',
        '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},'
        '"a":{"dtype":"F32","shape":[3,1],"data_offsets":[0,12]}}',  # twice
        '{"a":' * 100_000,
        "{}",
        "{",
    ],
    ids=lambda header: header[:90],
)
def test_a_wrong_safetensors_header(header: str, tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    content = struct.pack("<Q", len(header)) + header.encode()
    refusal(path, content + bytes(12))


def test_a_header_longer_than_the_file(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    for length in (1000, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1):
        refusal(path, struct.pack("<Q", length) + b'{"a":')


def test_caffe_blobs_that_do_not_fit(tmp_path: pathlib.Path):
    path, messages = tmp_path / "x.caffemodel", caffe_messages(packed=True)
    for dims in ([4], [2, 2], [-1], [1 << 40, 1 << 40], [0]):
        net = messages["NetParameter"](name="net")
        blob = net.layer.add(name="conv1_1").blobs.add(data=[1, 2, 3])
        blob.shape.dim.extend(dims)
        assert "conv1_1/0" in refusal(path, net.SerializeToString())
    net = messages["NetParameter"](name="net")
    for _ in range(2):
        net.layer.add(name="conv1_1").blobs.add(data=[1])
    assert "two layers are called 'conv1_1'" in refusal(path, net.SerializeToString())


# Files that are none


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x00", "none of the formats"),
        (b"PK", "none of the formats"),
        (b"\x89HDF\r\n\x1a\n", "damaged"),
        (b"PK\x03\x04" + bytes(99), "damaged"),
        (bytes(1000), "none of the formats"),
        (b"\n\n<!DOCTYPE html><html><body>Quota exceeded", "web page"),
        (b"<html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "server's error"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
            "git lfs pull",
        ),
        (json.dumps({"weight_map": {}}).encode(), "JSON"),
        (gzip.compress(b"x" * 99), "gunzip"),
        (pickle.dumps({"a": np.ones(3)}), "bare pickle"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_no_weight_file(content: bytes, words: str, tmp_path: pathlib.Path):
    assert words in refusal(tmp_path / "vgg16.pth", content)


def test_other_paths(tmp_path: pathlib.Path):
    assert "is a directory" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "missing.pth")
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(tmp_path / "loop")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(DATA / "state_dict_zip.pth", "x.pth")
    assert "tar archive" in refusal(path)


# Checksums


@pytest.mark.parametrize(
    ("name", "is_good"),
    [
        ("vgg16-{right}.pth", True),
        ("vgg16_batch256_imagenet_20210208-{right}.pth", True),
        ("vgg16-00000000.pth", False),
        ("vgg16-{right}0.pth", True),  # nine digits are not torchvision's
        ("vgg16-20240131.pth", True),  # a date
        ("vgg16-0785-00000000.pth", True),  # pytorchcv: of sha1
        ("vgg16-00000000.txt", True),
    ],
)
def test_the_hash_in_the_name_is_kept(name: str, is_good: bool, tmp_path: pathlib.Path):
    content = (DATA / "state_dict_zip.pth").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    path = tmp_path / name.format(right=sha256[:8])
    path.write_bytes(content)
    if is_good:
        assert containers.read(path).sha256 == sha256
    else:
        message = refusal(path)
        assert "starts with 00000000" in message and sha256 in message


@pytest.mark.parametrize("stem", ["state_dict_zip", "checkpoint_zip"])
def test_every_flipped_payload_bit_of_a_zip_is_caught(
    stem: str, tmp_path: pathlib.Path
):
    content = (DATA / f"{stem}.pth").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [i for i in archive.infolist() if "/data" in i.filename]
    rng = np.random.default_rng(3)
    for entry in entries:
        name_size, extra_size = struct.unpack_from(
            "<2H", content, entry.header_offset + 26
        )
        start = entry.header_offset + 30 + name_size + extra_size
        for offset in rng.integers(entry.file_size, size=min(entry.file_size, 20)):
            flipped = bytearray(content)
            flipped[start + offset] ^= 1 << rng.integers(8)
            assert "crc32" in refusal(tmp_path / "x.pth", bytes(flipped))


# Damage


def mutations(content: bytes, seed: int, count: int) -> list[bytes]:
    """Damaged copies: in the payload, and as often in the first or last kilobyte."""
    rng = np.random.default_rng(seed)
    extremes = (0, 1, 0x7F, 0xFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
    found = []
    for i in range(count):
        size = len(content)
        spans = ((0, size), (0, min(size, 1024)), (max(0, size - 1024), size))
        at = int(rng.integers(*spans[i % 3]))
        damaged = bytearray(content)
        kind = rng.integers(6)
        if kind == 0:
            for _ in range(rng.integers(1, 9)):
                damaged[rng.integers(*spans[i % 3])] = rng.integers(256)
        elif kind == 1:
            damaged[at] ^= 1 << rng.integers(8)
        elif kind == 2:
            del damaged[at:]
        elif kind == 3:
            damaged[at:at] = rng.bytes(rng.integers(1, 20))
        elif kind == 4:
            del damaged[at : at + rng.integers(1, 20)]
        else:
            width = int(rng.choice([1, 2, 4, 8]))
            number = extremes[rng.integers(len(extremes))] % 2 ** (8 * width)
            damaged[at : at + width] = number.to_bytes(width, "little")
        found.append(bytes(damaged))
    return found


@every_writer
def test_damaged_files_are_refused_or_read_whole(writer: str, tmp_path: pathlib.Path):
    path = tmp_path / "weights"
    WRITERS[writer][1](path)
    content, refused = path.read_bytes(), 0
    for damaged in mutations(content, seed=4, count=300):
        path.unlink()  # what was read before stays mapped
        path.write_bytes(damaged)
        try:
            found = containers.read(path)
        except WeightsError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert found.tensors
            for array in found.tensors.values():
                assert len(array.tobytes()) == array.nbytes
    assert 30 < refused < 300, "the damage is all or nothing"


@every_writer
def test_cut_off_files_are_refused(writer: str, tmp_path: pathlib.Path):
    path = tmp_path / "weights"
    WRITERS[writer][1](path)
    content = path.read_bytes()
    # protobuf does not say how long a file is: only a cut inside a field shows.
    cuts = [1, 2, 5] if writer.startswith("caffe") else range(1, len(content), 97)
    for cut in cuts:
        refusal(path, content[:-cut])
