"""Caffe's files that ask for much; protobuf's wire format by hand."""

from collections.abc import Callable

LONG = 350_000  # bytes of what is long and named often


def varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def field(number: int, content: bytes) -> bytes:
    """A field of protobuf with a length."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def _layer(*parts: bytes, name: bytes = b"x") -> bytes:
    return field(100, field(1, name) + b"".join(parts))


CAFFE: dict[str, Callable[[], bytes]] = {
    "alternating fields": lambda: _layer(
        field(7, (b"\x2d" + bytes(4) + b"\x41" + bytes(8)) * 60_000)
    ),
    "a long name of many blobs": lambda: _layer(
        field(7, b"") * 200_000, name=b"n" * LONG
    ),
    "a long name of some blobs": lambda: _layer(field(7, b"") * 6000, name=b"n" * LONG),
    "very many layers": lambda: b"".join(_layer(name=b"%d" % i) for i in range(90_000)),
    "very many empty blobs": lambda: _layer(field(7, b"") * 400_000),
    "names again and again": lambda: _layer(field(1, b"n" * 1000) * 900),
    "a shape field by field": lambda: _layer(field(7, field(7, b"\x08\x01") * 200_000)),
    "a long shape": lambda: _layer(field(7, field(7, field(1, b"\x01" * 800_000)))),
    "a huge shape of nothing": lambda: _layer(
        field(7, field(7, field(1, b"\x00" + (b"\xff" * 8 + b"\x7f") * 3)))
    ),
    "legacy shapes without end": lambda: _layer(
        field(
            7, b"".join(bytes([n << 3]) + b"\xff" * 8 + b"\x7f" for n in (1, 2, 3, 4))
        )
    ),
    "numbers of both kinds": lambda: _layer(
        field(7, (field(5, bytes(4)) + field(8, bytes(8))) * 30_000)
    ),
    "packed numbers in pieces": lambda: _layer(field(7, field(5, bytes(4)) * 100_000)),
    "layers in layers": lambda: nested(100, 10_000),
    "fields of no layer": lambda: _layer() + field(50, b"") * 300_000,
}


def nested(number: int, depth: int) -> bytes:
    """A message in a message and so on; in all quadratic in what they say."""
    heads, size = [], 0
    for _ in range(depth):
        head = varint(number << 3 | 2) + varint(size)
        heads.append(head)
        size += len(head)
    return b"".join(reversed(heads))
