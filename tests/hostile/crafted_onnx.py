"""ONNX files that ask for much."""

import functools
from collections.abc import Callable

import numpy as np

from tests import onnx_files
from tests.hostile.crafted_caffe import field, nested, varint

LONG = 350_000  # bytes of what is long and named often


def onnx(graph: bytes, more: bytes = b"") -> bytes:
    """A model with a graph and an opset."""
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x0d") + more


def onnx_tensor(name: bytes, dtype: int, shape: bytes, content: bytes) -> bytes:
    """An initialiser with raw data and a packed shape."""
    return field(
        5,
        field(1, shape) + b"\x10" + bytes([dtype]) + field(8, name) + field(9, content),
    )


def node(op: bytes, inputs: list[bytes], output: bytes, more: bytes = b"") -> bytes:
    inner = b"".join(field(1, i) for i in inputs) + field(2, output) + field(4, op)
    return field(1, inner + more)


def attribute(name: bytes, content: bytes) -> bytes:
    return field(5, field(1, name) + content)


IMAGE = field(11, field(1, b"x") + field(2, field(1, b"\x08\x01")))
LONG_INTS = onnx_tensor(b"s", 7, varint(LONG // 8), bytes(LONG))


def _of_nodes(count: int, make: Callable[[int], bytes]) -> bytes:
    return b"".join(make(i) for i in range(count))


def _padded(graph: bytes) -> bytes:
    """A model of 900 kB, which may have some thousand fields."""
    return onnx(graph, field(25, bytes(900_000 - len(graph))))


def _long_for_many(operator: str) -> bytes:
    """Very many nodes, each of which is told its sizes or axes by one long constant."""

    def one(number: int) -> bytes:
        return node(operator.encode(), [b"a", b"s"], b"%d" % number)

    constant = onnx_tensor(b"a", 1, b"\x01", bytes(4))
    return _padded(IMAGE + LONG_INTS + constant + _of_nodes(1300, one))


def _elsewhere(place: str, dtype: int = 1) -> bytes:
    """A constant that is kept in another file."""
    pair = field(1, b"location") + field(2, place.encode())
    inner = (
        b"\x08\x01\x10"
        + bytes([dtype])
        + field(8, b"w")
        + field(13, pair)
        + b"\x70\x01"
    )
    return onnx(field(5, inner) + IMAGE)


ONNX: dict[str, Callable[[], bytes]] = {
    "very many nodes": lambda: onnx(
        _of_nodes(40_000, lambda i: node(b"Relu", [b"%d" % i], b"%d" % (i + 1)))
    ),
    "as many nodes as are read": lambda: _padded(
        IMAGE
        + _of_nodes(
            1200,
            lambda i: node(
                b"Identity",
                [b"%d" % i if i else b"x"],
                b"%d" % (i + 1),
                attribute(b"n" * 250, b"\x18\x01"),
            ),
        )
    ),
    **{
        f"long integers for {operator}": functools.partial(_long_for_many, operator)
        for operator in ("Reshape", "Unsqueeze", "Squeeze")
    },
    "long ends of many slices": lambda: _padded(
        field(11, field(1, b"x") + field(2, field(1, b"\x08\x01")))
        + onnx_tensor(b"s", 7, varint(LONG // 8), b"\x80" + b"\xff" * (LONG - 1))
        + onnx_tensor(b"m", 7, b"\x01", b"\xff" * 8)
        + onnx_tensor(b"o", 7, b"\x01", b"\x01" + bytes(7))
        + _of_nodes(
            900,
            lambda i: node(
                b"Slice",
                [b"%d" % i if i else b"x", b"m", b"s", b"o", b"m"],
                b"%d" % (i + 1),
            ),
        )
    ),
    "a long order for many": lambda: _padded(
        IMAGE
        + _of_nodes(
            100,
            lambda i: node(
                b"Transpose",
                [b"%d" % i if i else b"x"],
                b"%d" % (i + 1),
                attribute(b"perm", field(8, bytes(4000))),
            ),
        )
    ),
    "integers field by field": lambda: onnx(
        IMAGE + field(5, b"\x10\x07" + field(8, b"w") + field(7, b"\x01") * 200_000)
    ),
    "integers in packs": lambda: onnx(
        IMAGE + field(5, b"\x10\x07" + field(8, b"w") + field(7, b"\x01" * 8) * 60_000)
    ),
    "few integers field by field": lambda: _padded(
        IMAGE
        + field(
            5,
            field(1, varint(4000))
            + b"\x10\x07"
            + field(8, b"w")
            + field(7, b"\x01") * 4000,
        )
    ),
    "floats in packs": lambda: onnx(
        IMAGE + field(5, b"\x10\x01" + field(8, b"w") + field(4, bytes(4)) * 100_000)
    ),
    "lists of floats": lambda: onnx(
        IMAGE
        + node(b"Conv", [b"x"], b"y", attribute(b"f", field(7, bytes(4)) * 80_000))
    ),
    "a long name of many nodes": lambda: onnx(
        IMAGE + _of_nodes(8, lambda i: node(b"n" * 100_000, [b"x"], b"y"))
    ),
    "a circle": lambda: onnx(IMAGE + node(b"Relu", [b"x"], b"x")),
    "a circle of constants": lambda: onnx(
        IMAGE + node(b"Identity", [b"b"], b"a") + node(b"Identity", [b"a"], b"b")
    ),
    "constants without an input": lambda: _padded(
        IMAGE + _of_nodes(2800, lambda i: node(b"Identity", [], b"%d" % i))
    ),
    "graphs in graphs": lambda: onnx(nested(7, 10_000)),
    "attributes in attributes": lambda: onnx(field(1, nested(5, 10_000))),
    "graphs in attributes of nodes": lambda: onnx(
        field(1, field(5, nested(6, 10_000)))
    ),
    "much metadata": lambda: onnx(
        IMAGE,
        _of_nodes(60_000, lambda i: field(14, field(1, b"%d" % i) + field(2, b"x"))),
    ),
    "a table of strings": lambda: onnx(
        IMAGE + field(5, b"\x10\x08" + field(8, b"w") + field(6, b"x") * 250_000)
    ),
    "a huge shape of nothing": lambda: onnx(
        IMAGE + onnx_tensor(b"w", 1, b"\x00" + (b"\xff" * 8 + b"\x7f") * 3, b"")
    ),
    "a long shape of nothing": lambda: onnx(
        IMAGE + onnx_tensor(b"w", 1, b"\x00" * 800_000, b"")
    ),
    "a tensor in the folder above": lambda: _elsewhere("../secret"),
    "a tensor in /etc/passwd": lambda: _elsewhere("/etc/passwd"),
    "a tensor in a name of 300,000": lambda: _elsewhere("n/" * 150_000),
    "a tensor in a null byte": lambda: _elsewhere("a\0b"),
    "a tensor in the file itself": lambda: _elsewhere("x.onnx"),
    "a tensor in the folder": lambda: _elsewhere("."),
    "very many files beside it": lambda: onnx(
        IMAGE
        + _of_nodes(
            15_000,
            lambda i: field(
                5,
                b"\x08\x01\x10\x01"
                + field(8, b"%d" % i)
                + field(13, field(1, b"location") + field(2, b"f%d" % i)),
            ),
        )
    ),
    "a file of a long path for many": lambda: _padded(
        IMAGE
        + _of_nodes(
            900,
            lambda i: field(
                5,
                b"\x08\x01\x10\x01"
                + field(8, b"%d" % i)
                + field(13, field(1, b"location") + field(2, b"./" * 80 + b"x.onnx"))
                + field(13, field(1, b"length") + field(2, b"4")),
            ),
        )
    ),
    "numbers of 4,300 digits as a place": lambda: onnx(
        IMAGE
        + field(
            5,
            b"\x08\x01\x10\x01"
            + field(8, b"w")
            + field(13, field(1, b"location") + field(2, b"x.onnx"))
            + field(13, field(1, b"offset") + field(2, b"9" * 4301)),
        )
    ),
    "arithmetic without end": lambda: _padded(
        field(11, field(1, b"x") + field(2, field(1, b"\x08\x01")))
        + onnx_tensor(b"k", 1, b"\x01", np.float32(3e38).tobytes())
        + _of_nodes(
            1300,
            lambda i: node(b"Mul", [b"%d" % i if i else b"x", b"k"], b"%d" % (i + 1)),
        )
    ),
    "a normalisation without end": lambda: _normalised_without_end(),
}


def _normalised_without_end() -> bytes:
    graph = onnx_files.Graph(("N", 3, 64, 64))
    for _ in range(300):
        graph.add("Mul", np.full((1, 3, 1, 1), 1e30, np.float32))
    graph.add("Conv", np.ones((4, 3, 3, 3), np.float32), pads=[1] * 4)
    return graph.model.SerializeToString()
