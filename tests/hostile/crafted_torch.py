"""Files of PyTorch's that ask for much."""

import io
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable

LONG = 350_000  # bytes of what is long and named often


def zipped(content: bytes, method: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """A file of torch's with `content` as its pickle and one storage, "1"."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content)
        for name, entry in {"data/1": bytes(4), **entries}.items():
            archive.writestr(f"archive/{name}", entry)
    return stream.getvalue()


def text(value: bytes) -> bytes:
    """A string in a pickle."""
    return b"X" + struct.pack("<I", len(value)) + value


def tensor(shape: bytes = b"(K\x01t", strides: bytes = b"(K\x01t") -> bytes:
    """A tensor in a pickle, of one float."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x011U\x03cpuK\x01tQ"
    head = b"ctorch._utils\n_rebuild_tensor\n("
    return head + storage + b"K\x00" + shape + strides + b"tR"


def often(made: bytes, use: bytes, end: bytes = b"}.") -> bytes:
    """Something long, which each of as many instructions as there is room for takes."""
    return made + b"q\x010" + use * (LONG // len(use)) + end


LONG_TUPLE = b"(" + b"N" * LONG + b"t"
HUGE = b"\x8b" + struct.pack("<i", LONG) + b"\x7f" * LONG


def nested_rebuild(depth: int) -> bytes:
    name = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x010"
    opened = b"(h\x01N" * depth
    return name + b"h\x01" + opened + b"(h\x01N)Nt" + b"Nt" * depth + b"R."


def modules(parameters: bytes, names: str, count: int) -> bytes:
    """Modules in one, all with the same parameters."""
    module = b"cx\nM\n)\x81}(" + text(b"_parameters") + b"h\x01"
    module += text(b"_buffers") + b"}" + text(b"_modules")
    inner = b"".join(
        text(names.format(i).encode()) + module + b"}ub" for i in range(count)
    )
    return parameters + b"q\x010" + module + b"}(" + inner + b"uub."


def many_none(count: int) -> bytes:
    return b"}(" + b"".join(text(b"%d" % i) + b"N" for i in range(count)) + b"u"


def tensors(count: int) -> bytes:
    head = tensor() + b"q\x010}("
    return head + b"".join(text(b"%d" % i) + b"h\x01" for i in range(count)) + b"u."


def overlapping(count: int) -> bytes:
    """A zip file all of whose storages are the same bytes."""
    pids = b"".join(
        text(b"%d" % i) + b"ctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\n"
        b"FloatStorage\n"
        + text(b"%d" % i)
        + b"U\x03cpuJ"
        + struct.pack("<i", 50_000)
        + b"tQK\x00(J"
        + struct.pack("<i", 50_000)
        + b"t(K\x01ttR"
        for i in range(count)
    )
    content = zipped(b"}(" + pids + b"u.", **{"data/0": bytes(200_000)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start = archive.start_dir
    directory = content[start:]
    end = directory.rindex(b"PK\x05\x06")
    records, place = [], 0
    last = b""
    while place < end:
        sizes = struct.unpack_from("<3H", directory, place + 28)
        size = 46 + sum(sizes)
        last = directory[place : place + size]
        records.append(last)
        place += size
    for i in range(2, count):
        name = f"archive/data/{i}".encode()
        record = bytearray(last[:46]) + name
        struct.pack_into("<H", record, 28, len(name))
        records.append(bytes(record))
    body = b"".join(records)
    total = len(records)
    return (
        content[:start]
        + body
        + struct.pack(
            "<4s4H2LH", b"PK\x05\x06", 0, 0, total, total, len(body), start, 0
        )
    )


TORCH_ZIP: dict[str, Callable[[], bytes]] = {
    "a long tuple as arguments": lambda: zipped(often(LONG_TUPLE, b"cx\ny\nh\x01R0")),
    "a long tuple for new": lambda: zipped(often(LONG_TUPLE, b"cx\ny\nh\x01\x810")),
    "a long tuple as a storage": lambda: zipped(
        often(b"(" + text(b"module") + b"N" * LONG + b"t", b"h\x01Q0")
    ),
    "a long storage": lambda: zipped(
        often(
            b"(U\x07storagectorch\nFloatStorage\nU\x011U\x03cpuK\x01"
            + b"N" * LONG
            + b"t",
            b"h\x01Q0",
        )
    ),
    "long names of classes": lambda: zipped(
        often(text(b"n" * LONG), b"h\x01h\x01\x930")
    ),
    "long names of classes, kept": lambda: zipped(
        often(text(b"n" * LONG), b"h\x01h\x01\x93")
    ),
    "a long key": lambda: zipped(
        often(LONG_TUPLE, b"h\x01Ns", b".").replace(b"q\x010", b"q\x010}", 1)
    ),
    "a huge key": lambda: zipped(
        often(HUGE, b"h\x01Ns", b".").replace(b"q\x010", b"q\x010}", 1)
    ),
    "keys that are huge and few": lambda: zipped(
        often(HUGE, b"h\x01h\x01\x86Ns", b".").replace(b"q\x010", b"q\x010}", 1)
    ),
    "pairs again and again": lambda: zipped(
        often(
            b"](" + b"".join(text(b"%d" % i) + b"N\x86" for i in range(30_000)) + b"e",
            b"ccollections\nOrderedDict\nh\x01\x85R0",
        )
    ),
    "one tensor rebuilt within itself": lambda: zipped(nested_rebuild(50_000)),
    "arguments of a rebuilt tensor": lambda: zipped(
        often(
            LONG_TUPLE,
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\n"
            b"Counter\nNh\x01NtR0",
        )
    ),
    "modules that share what they hold": lambda: zipped(
        modules(many_none(30_000), "{}", 5000)
    ),
    "modules that share a long name": lambda: zipped(
        modules(b"}" + text(b"n" * LONG) + tensor() + b"s", "{}", 5000)
    ),
    "a module within itself": lambda: zipped(
        b"cx\nM\n)\x81q\x01}("
        + text(b"_parameters")
        + b"}"
        + text(b"_buffers")
        + b"}"
        + text(b"_modules")
        + b"}"
        + text(b"m")
        + b"h\x01sub."
    ),
    "a dict within itself": lambda: zipped(b"}q\x01" + text(b"d") + b"h\x01s."),
    "dicts in dicts": lambda: zipped(
        (b"}" + text(b"d")) * 100_000 + b"}" + b"s" * 100_000 + b"."
    ),
    "lists in lists": lambda: zipped(b"]" * 400_000 + b"a" * 399_999 + b"."),
    "tuples in tuples": lambda: zipped(b"N" + b"\x85" * 800_000 + b"."),
    "a key of tuples in tuples": lambda: zipped(b"}N" + b"\x85" * 800_000 + b"Ns."),
    "a shape of tuples in tuples": lambda: zipped(
        b"}" + text(b"w") + tensor(b"N" + b"\x85" * 800_000) + b"s."
    ),
    "a long shape": lambda: zipped(
        b"}" + text(b"w") + tensor(b"(" + b"K\x01" * LONG + b"t") + b"s."
    ),
    "a huge shape of nothing": lambda: zipped(
        b"}"
        + text(b"w")
        + tensor(b"(K\x00" + b"\x8a\x08" + b"\xff" * 7 + b"\x7ft")
        + b"s."
    ),
    "very many small tensors": lambda: zipped(tensors(70_000)),
    "as many small tensors as are read": lambda: zipped(tensors(6000)),
    "storages in one place": lambda: overlapping(3000),
    "a pickle of marks, deflated": lambda: zipped(b"(" * (4 << 20), 8),
    "a pickle of zeros, deflated": lambda: zipped(b"K\x00" * (500 << 10), 8),
    "a storage of zeros, deflated": lambda: zipped(
        b"}" + text(b"w") + tensor() + b"s.", 8, **{"data/1": bytes(600 << 20)}
    ),
    "a storage of zeros, deflated a little": lambda: zipped(
        b"}" + text(b"w") + tensor() + b"s.", 8, **{"data/1": bytes(60 << 20)}
    ),
    "texts of zeros, deflated": lambda: zipped(
        b"}" + text(b"w") + tensor() + b"s.",
        8,
        **{f"extra/{i}": bytes(15 << 20) for i in range(4)},
    ),
    "a number of 4,300 digits": lambda: zipped(b"}I" + b"9" * 4301 + b"\nNs."),
    "numbers of 4,299 digits": lambda: zipped(
        (b"L" + b"9" * 4299 + b"L\n0") * 200 + b"N."
    ),
    "a name of 800,000 letters": lambda: zipped(
        b"}" + text(b"features.0." + b"n" * 800_000) + tensor() + b"s."
    ),
    "frames": lambda: zipped((b"\x95" + struct.pack("<Q", 1) + b"N0") * 80_000 + b"N."),
    "very many entries": lambda: zipped(
        b"}.", **{f"data/{i:04}": b"" for i in range(7000)}
    ),
    "no entry that it names": lambda: zipped(
        b"}" + text(b"w") + tensor().replace(b"U\x011", text(b"k" * LONG)) + b"s."
    ),
}


def legacy(content: bytes, keys: bytes, storages: bytes = b"") -> bytes:
    head = (
        pathlib.Path(__file__).parents[1] / "files/state_dict_legacy.pth"
    ).read_bytes()
    stream = io.BytesIO(head)
    for _ in range(3):  # magic number, version, system
        pickle.load(stream)
    return head[: stream.tell()] + b"\x80\x02" + content + b"\x80\x02" + keys + storages


def legacy_long_key() -> bytes:
    key = text(b"k" * LONG)
    made = tensor().replace(b"U\x011", key).replace(b"K\x01tQ", b"K\x00tQ")
    keys = key + b"q\x010](" + b"h\x01" * 40_000 + b"e."
    return legacy(b"}" + text(b"w") + made + b"s.", keys, bytes(8 * 40_000))


TORCH_LEGACY: dict[str, Callable[[], bytes]] = {
    "a storage by a long key, often": legacy_long_key,
    "a long tuple as arguments": lambda: legacy(
        often(LONG_TUPLE, b"cx\ny\nh\x01R0"), b"]."
    ),
    "keys that are no list": lambda: legacy(b"}.", HUGE + b"."),
    "no more than a head": lambda: legacy(b"", b""),
    "very many small tensors": lambda: legacy(
        tensors(70_000), b"](U\x011e.", struct.pack("<q", 1) + bytes(4)
    ),
    "lists in lists": lambda: legacy(b"]" * 400_000 + b"a" * 399_999 + b".", b"]."),
}
