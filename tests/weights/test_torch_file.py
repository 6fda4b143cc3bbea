"""PyTorch's files: what torch saves, and pickles that want more than tensors."""

import argparse
import builtins
import collections
import datetime
import io
import os
import pathlib
import pickle
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from torchvision_net import torchvision_tensors
from weight_files import DATA, TORCH_ARRAYS, assert_equal, little_memory, refusal

import vgg_flax
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import formats, torch_pickle, torch_writer

# torch itself


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_saves_and_we_read(is_zip: bool, protocol: int, tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)
    )
    by_name = dict(net.named_parameters())
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 2])
    (net[2](torch.ones(4))).sum().backward()
    optimizer.step()
    state = net.state_dict()
    expected = {name: tensor.numpy() for name, tensor in state.items()}
    whole = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),  # has a Counter
        "args": argparse.Namespace(size=torch.Size([3]), names={"a"}),
        "accuracy": np.float64(0.5),
    }
    for i, (value, arrays) in enumerate(
        [
            (state, expected),
            (dict(state), expected),
            ({"model": state, "args": ("a", 1, {"b": [2.0]})}, expected),
            (by_name, {name: expected[name] for name in by_name}),
            (net, expected),
            ({"hyper_parameters": argparse.Namespace(lr=0.1), "net": net}, expected),
            ({"net": state, "device": torch.device("cpu")}, expected),
            (whole, expected),
        ]
    ):
        path = tmp_path / f"{i}.pth"
        torch.save(
            value,
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=is_zip,
        )
        container = formats.read(path)
        assert_equal(container.tensors, arrays)
        assert container.format == ("torch_zip" if is_zip else "torch_legacy")


def some_arrays() -> dict[str, np.ndarray]:
    """One of each dtype that torch stores, in shapes and orders of all kinds."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{name.lower()}.weight": (9 * rng.normal(size=(5, 3, i + 1))).astype(dtype)
        for i, (name, dtype) in enumerate(torch_pickle.STORAGES.items())
    }
    arrays["turned"] = rng.normal(size=(4, 7)).astype(np.float32).T
    arrays["big-endian"] = rng.normal(size=(2, 3)).astype(">f4")
    arrays['name ünd "so"'] = np.float32([[1.5]])
    return arrays | {"scalar": np.array(3.5), "nothing": np.zeros((0, 2), np.float32)}


@pytest.mark.parametrize("mmap", [True, False])
def test_we_write_and_torch_loads(mmap: bool, tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    path, arrays = tmp_path / "net.pth", some_arrays()
    torch_writer.write(path, arrays, {"vgg_flax": "{}"})
    state = torch.load(path, weights_only=True, mmap=mmap)
    assert type(state) is collections.OrderedDict and [*state] == [*arrays]
    for name, array in arrays.items():
        tensor = state[name]
        assert tuple(tensor.shape) == array.shape and tensor.is_contiguous()
        assert not tensor.requires_grad
        as_numbers = tensor.double().numpy()
        np.testing.assert_array_equal(as_numbers, array.astype(np.float64))
        assert str(tensor.dtype).removeprefix("torch.") == array.dtype.name
        assert tensor.data_ptr() % 64 == 0 or not mmap or not array.size


def test_what_we_write_we_read(tmp_path: pathlib.Path) -> None:
    path, arrays = tmp_path / "net.pth", some_arrays()
    texts = {"vgg_flax": '{"name": "ünd\\n"}', "more": ""}
    torch_writer.write(path, arrays, texts)
    container = formats.read(path)
    native = {n: a.astype(a.dtype.newbyteorder("<")) for n, a in arrays.items()}
    assert_equal(container.tensors, native)
    assert (container.format, container.metadata) == ("torch_zip", texts)
    again = tmp_path / "again.pth"
    torch_writer.write(again, arrays, texts)
    assert again.read_bytes() == path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/version") == b"3\n"


def test_a_large_net_is_written_without_a_copy_of_it(tmp_path: pathlib.Path) -> None:
    arrays = {str(i): np.ones((1 << 20,), np.float32) for i in range(8)}
    with little_memory(6 << 20):  # one tensor at a time
        torch_writer.write(tmp_path / "net.pth", arrays, {})


def test_what_torch_cannot_store_is_refused(tmp_path: pathlib.Path) -> None:
    arrays = {"conv": np.zeros(3, ml_dtypes.float8_e4m3fn)}
    with pytest.raises(WeightsError, match=r"conv is of float8_e4m3fn.* expected .*32"):
        torch_writer.write(tmp_path / "net.pth", arrays, {})


def test_texts_beside_tensors_that_are_none_are_passed_over(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "net.pth"
    torch_writer.write(path, {"a": np.zeros((2, 2), np.float32)}, {"one": "1"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/extra/bytes", b"\xff\xfe")
        archive.writestr("archive/extra/long", bytes(17 << 20))
        archive.writestr("other/extra/two", b"2")
    assert formats.read(path).metadata == {"one": "1"}


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_net_is_loaded_from_one_of_two_sets(is_zip: bool, tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "checkpoint.pth"
    sets = {
        name: {n: torch.tensor(a) for n, a in torchvision_tensors(seed=seed).items()}
        for seed, name in enumerate(["model", "model_ema"])
    }
    content = {**sets, "epoch": 3, "metrics": {"top1": torch.tensor(0.5)}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match="several sets of tensors: model, model_ema"):
        vgg_flax.load(path)
    nets = {name: vgg_flax.load(path, entry=name) for name in sets}
    for name, net in nets.items():
        kernel = net.variables["params"]["fc8"]["kernel"][0, 0]
        np.testing.assert_array_equal(kernel.T, sets[name]["classifier.6.weight"])
        assert net.source == f"{path}, {name}"  # one file, and not the same net


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_is_no_state_dict_says_so(is_zip: bool, tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(2, 3)
    state, path = net.state_dict(), tmp_path / "x.pth"
    for value, words in [
        (torch.device("cpu"), "holds a torch.device, not a dict of tensors"),
        ([state], "holds a list"),
        (net.weight, "not a dict of tensors"),
        ({"epoch": 1}, "holds no tensors"),
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


@both_files
def test_a_state_dict_of_python_2(file: Any, tmp_path: pathlib.Path):
    path = tmp_path / "vgg.pth"
    array = np.arange(6, dtype=np.float32)
    path.write_bytes(file(tensor_pickle(), array.tobytes()))
    assert_equal(formats.read(path).tensors, {"weight": array.reshape(2, 3)})
    path.write_bytes(file(tensor_pickle((2,), (3,), offset=1), array.tobytes()))
    assert_equal(formats.read(path).tensors, {"weight": array[[1, 4]]})


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
    marker, path = tmp_path / "marker", tmp_path / "x.pth"
    module = {2: "__builtin__", 4: "builtins"}[protocol]  # 2 spells it as Python 2
    for call, name in [
        (Call(os.system, f"touch {marker}"), "posix.system"),
        (Call(os.mkdir, str(marker)), "posix.mkdir"),
        (Call(builtins.eval, f"open({str(marker)!r}, 'w').close()"), f"{module}.eval"),
    ]:
        content = pickle.dumps(call, protocol)
        if inside:
            prefix = content[2:-1] + b"0"  # without its protocol and its end; dropped
            path.write_bytes(file(tensor_pickle(prefix=prefix)))
            assert [*formats.read(path).tensors] == ["weight"]
        else:
            assert f"holds a {name}, not a dict" in refusal(path, file(content))
        assert not marker.exists()
        pickle.loads(content)  # the machine that is not ours runs it
        assert marker.exists()
        marker.rmdir() if marker.is_dir() else marker.unlink()


class Plain:
    """Pickles as an object with a state."""

    def __init__(self) -> None:
        self.inner = {"weight": 3}


BESIDE_TENSORS = {
    "Counter": collections.Counter([10, 10, 20]),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "Namespace": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/x")),
    "NumPy scalar": np.float64(3),
    "NumPy array": np.arange(3),
    "object": Plain(),
    "dict of kinds of keys": {None: 1, (1, "a"): 2, b"x": 3, 1.5: 4, True: 5},
    "date": datetime.date(2020, 1, 1),
    "function": pathlib.PurePosixPath,
    "list of a class of one's own": collections.deque([1, 2]),
}


@both_files
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("what", BESIDE_TENSORS)
def test_what_lies_beside_tensors_becomes_nothing(
    file: Any, what: str, protocol: int, tmp_path: pathlib.Path
):
    path = tmp_path / "x.pth"
    content = pickle.dumps(BESIDE_TENSORS[what], protocol)
    inner = content[2 + 9 * (protocol == 4) : -1] + b"0"
    path.write_bytes(file(tensor_pickle(prefix=inner)))
    assert_equal(formats.read(path).tensors, {"weight": np.zeros((2, 3), np.float32)})


def several_sets() -> bytes:
    """{"model": {"weight": 2-D}, "ema": {"model": {"weight": 2-D}}, "metrics": 0-D}"""
    tensor = tensor_pickle()[2:-1] + b"q\x09"
    number = tensor_pickle((), ())[2:-1]
    return (
        b"\x80\x02}(U\x05model" + tensor + b"U\x03ema}(U\x05model"
        + tensor + b"uU\x07metrics" + number + b"u."
    )  # fmt: skip


@both_files
def test_of_several_sets_one_is_chosen(file: Any, tmp_path: pathlib.Path):
    path = tmp_path / "x.pth"
    path.write_bytes(file(several_sets()))
    container = formats.read(path)
    assert [*container.entries] == ["model", "ema.model"]
    expected = {"weight": np.zeros((2, 3), np.float32)}
    assert_equal(container.entry("ema.model"), expected)
    with pytest.raises(WeightsError, match=r"several sets of .*: model, ema\.model;"):
        container.entry(None)
    with pytest.raises(WeightsError, match=r"no entry 'ema'; it has model, ema\.model"):
        container.entry("ema")
    path.write_bytes(file(tensor_pickle()))
    with pytest.raises(WeightsError, match="one set of tensors, without a name"):
        formats.read(path).entry("model")


def test_sets_that_lie_in_each_other_end(tmp_path: pathlib.Path):
    # {"a": itself, "b": {"a": the first, "weight": a tensor}}, and modules likewise.
    weight = tensor_pickle()[2:-1]
    content = b"\x80\x02}q\x01(U\x01ah\x01U\x01b}(U\x01ah\x01U\x01w" + weight + b"uu."
    path = tmp_path / "x.pth"
    path.write_bytes(zip_file(content))
    assert [*formats.read(path).entries] == ["b.w"]
    module = (
        b"cx\ny\n)\x81q\x01}(U\x0b_parameters" + weight + b"U\x08_buffers}"
        b"U\x08_modules}(U\x01ah\x01U\x01bh\x01uub"
    )
    assert "names of modules" in refusal(path, zip_file(b"\x80\x02" + module + b"."))


HOSTILE = {  # instructions before the dict, and words of the refusal
    b"ctorch._utils\n_rebuild_tensor\n}U\x01aK\x01sb0": "takes none",  # BUILD
    b"ccollections\nOrderedDict\n)\x81}U\x01aK\x01sb0": "",
    b"\x82\x01": "instruction EXT1",
    b"\x96\xff\xff\xff\xff\xff\x00\x00\x00": "instruction BYTEARRAY8",  # a terabyte
    b"\x8f(" + b"(" * 1000 + b"t" * 1000 + b"\x900": "",  # a set of nested tuples
    b"}(}}u0": "key is a dict",
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
        assert_equal(formats.read(path).tensors, expected)


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
    assert_equal(formats.read(path).tensors, TORCH_ARRAYS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle())
    refusal(path)


def test_legacy_storages_are_those_of_the_pickle(tmp_path: pathlib.Path):
    path, content = tmp_path / "x.pth", legacy_file(tensor_pickle())
    assert "1 bytes follow" in refusal(path, content + b"x")
    head, tail = content[:-32].removesuffix(pickle.dumps(["1"], 2)), content[-32:]
    assert "1 are missing" in refusal(path, head + pickle.dumps([], 2) + tail)
    assert "'2'" in refusal(path, head + pickle.dumps(["1", "2"], 2) + tail)
    assert "7 elements" in refusal(path, content[:-32] + b"\x07" + content[-31:])


def test_a_zip_bomb_is_not_unpacked(tmp_path: pathlib.Path):
    path, count = tmp_path / "x.pth", 20 << 20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        content = tensor_pickle((count,), (1,), total=count)
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/1", bytes(4 * count))
    with little_memory():
        assert "decompression bomb" in refusal(path)


def test_tensors_that_repeat_the_same_bytes(tmp_path: pathlib.Path):
    path, count = tmp_path / "x.pth", 1 << 20
    tensor = tensor_pickle((count,), (1,), total=count)
    first = tensor.index(b"(U\x06weight") + len(b"(U\x06weight")
    last = tensor.index(b"ee\x85R.")
    items = b"".join(
        b"](U\x03%03d" % i + (b"h\x63" if i else tensor[first:last] + b"q\x63") + b"e"
        for i in range(60)
    )
    content = b"\x80\x02ccollections\nOrderedDict\n](" + items + b"e\x85R."
    path.write_bytes(zip_file(content, bytes(4 * count)))
    with little_memory():
        assert f"unfold to {60 * 4 * count}" in refusal(path)


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
