"""ONNX's `.onnx`: the nodes of its graph, and its constants in place.

The messages and field numbers are those of ONNX's `onnx.proto`: a ModelProto has a
graph and metadata, a graph has nodes, inputs, outputs and initialisers, a node has an
operator, names of what it takes and gives, and attributes. The package `onnx` is not
needed to read it.
"""

import dataclasses
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vgg_flax import errors
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import mapped_file, protobuf

_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSETS, _MODEL_METADATA = 1, 7, 8, 14
_MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
_GRAPH_NODE, _GRAPH_CONSTANT, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP = 1, 2, 3, 4
_NODE_ATTRIBUTE, _NODE_DOMAIN = 5, 7
_F, _I, _S, _T, _FLOATS, _INTS = 2, 3, 4, 5, 7, 8  # an attribute's kinds
_DIMS, _DTYPE, _SEGMENT, _TENSOR_NAME, _RAW, _ELSEWHERE = 1, 2, 3, 8, 9, 13
_NUMBERS = {4: np.dtype("<f4"), 10: np.dtype("<f8")}  # packed, as they lie in memory
_VARINTS = (5, 7, 11)  # int32_data, int64_data, uint64_data
_DTYPES: dict[int, Any] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    4: np.dtype("<u2"),
    5: np.dtype("<i2"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    12: np.dtype("<u4"),
    13: np.dtype("<u8"),
    16: np.dtype(ml_dtypes.bfloat16),
}
UINT8 = 2  # as of `Value.dtype`


class Node(NamedTuple):
    """One operation.

    Attributes:
      op: the operator; of others than ONNX's own with its domain before it.
      name: as the file has it, or that of its first output.
      inputs: the names of what it takes; "" where an optional one is left out.
      outputs: the names of what it gives.
      attributes: int, float, bytes, lists of them, or an array.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


class Value(NamedTuple):
    """An input or output of the graph; a size is None where it may vary."""

    name: str
    dtype: int
    shape: tuple[int | None, ...]


@dataclasses.dataclass
class Graph:
    """What a file computes: `nodes` in their order, `constants` and texts by name."""

    file: mapped_file.MappedFile
    nodes: list[Node] = dataclasses.field(default_factory=list)
    inputs: list[Value] = dataclasses.field(default_factory=list)
    outputs: list[Value] = dataclasses.field(default_factory=list)
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def recognises(file: mapped_file.MappedFile) -> bool:
    """Whether a ModelProto's version opens the file, and another of its fields follows.

    protobuf has no magic number, but writes a message's fields in order.
    """
    try:
        version, position = protobuf.read_field(file.content, 0)
        tag, _ = protobuf.read_varint(file.content, position)
    except protobuf.WireError:
        return False
    is_version = version.number == _MODEL_IR and version.wire_type == protobuf.VARINT
    return is_version and 0 < version.value < 1000 and tag >> 3 in _MODEL_FIELDS


def read(file: mapped_file.MappedFile) -> Graph:
    """The graph; its constants are views of the file, or of those beside it.

    Raises:
      WeightsError: damaged, tensors in files that are elsewhere or not there, or more
        parts than a file of this size has.
    """
    walk, graph = protobuf.Walk(file, "an ONNX file"), Graph(file)
    seen: set[int] = set()
    for field in walk.fields(file.content):
        seen.add(field.number)
        if field.number == _MODEL_GRAPH and field.wire_type == protobuf.LEN:
            _read_graph(walk, field.payload, graph)
        elif field.number == _MODEL_METADATA and field.wire_type == protobuf.LEN:
            graph.metadata |= [_read_pair(walk, field.payload)]
    if not {_MODEL_GRAPH, _MODEL_OPSETS} <= seen:
        raise file.damaged("it has no graph, or does not say of which version")
    return graph


def _read_graph(walk: protobuf.Walk, message: np.ndarray, graph: Graph) -> None:
    for field in walk.fields(message):
        if field.wire_type != protobuf.LEN:
            continue
        if field.number == _GRAPH_NODE:
            graph.nodes.append(_read_node(walk, field.payload))
        elif field.number == _GRAPH_CONSTANT:
            name, array = _read_tensor(walk, field.payload)
            if name in graph.constants:
                raise walk.file.damaged(f"two tensors are called {errors.shown(name)}")
            graph.constants[name] = array
        elif field.number == _GRAPH_INPUT:
            graph.inputs.append(_read_value(walk, field.payload))
        elif field.number == _GRAPH_OUTPUT:
            graph.outputs.append(_read_value(walk, field.payload))


def _read_node(walk: protobuf.Walk, message: np.ndarray) -> Node:
    inputs, outputs, attributes = [], [], {}
    texts = {_NODE_NAME: "", _NODE_OP: "", _NODE_DOMAIN: ""}
    for field in walk.fields(message):
        if field.number == _NODE_INPUT:
            inputs.append(field.text)
        elif field.number == _NODE_OUTPUT:
            outputs.append(field.text)
        elif field.number in texts:
            texts[field.number] = field.text
        elif field.number == _NODE_ATTRIBUTE:
            name, value = _read_attribute(walk, field.payload)
            attributes[name] = value
    domain = texts[_NODE_DOMAIN]
    op = texts[_NODE_OP] if domain in ("", "ai.onnx") else f"{domain}.{texts[_NODE_OP]}"
    name = texts[_NODE_NAME] or next(iter(outputs), "")
    return Node(op, name, tuple(inputs), tuple(outputs), attributes)


def _read_attribute(walk: protobuf.Walk, message: np.ndarray) -> tuple[str, Any]:
    """Its name and value; None for kinds that no layer has, as graphs."""
    name, value = "", None
    floats: list[float] = []
    ints: list[int] = []
    for field in walk.fields(message):
        if field.number == 1:
            name = field.text
        elif field.number == _F and field.wire_type == protobuf.I32:
            value = float(field.payload.view("<f4")[0])
        elif field.number == _I and field.wire_type == protobuf.VARINT:
            value = protobuf.signed(field.value)
        elif field.number == _S:
            value = field.payload.tobytes()
        elif field.number == _T and field.wire_type == protobuf.LEN:
            _, value = _read_tensor(walk, field.payload)
        elif field.number == _FLOATS:
            whole = field.payload[: len(field.payload) // 4 * 4]
            floats += whole.view("<f4")[: walk.file.parts_limit].tolist()
        elif field.number == _INTS:
            ints += walk.integers(field)
    return name, ints or floats or value


def _read_tensor(walk: protobuf.Walk, message: np.ndarray) -> tuple[str, np.ndarray]:
    name, shape, code = "", [], 0
    chunks: list[np.ndarray] = []
    integers: list[int] | None = None
    elsewhere: dict[str, str] = {}
    for field in walk.fields(message):
        if field.number == _DIMS:
            shape += walk.integers(field)
        elif field.number == _DTYPE:
            code = field.value
        elif field.number == _TENSOR_NAME:
            name = field.text
        elif field.number == _RAW or field.number in _NUMBERS:
            chunks.append(field.payload)
        elif field.number in _VARINTS:
            integers = [] if integers is None else integers
            integers += walk.integers(field)
        elif field.number == _ELSEWHERE:
            elsewhere |= [_read_pair(walk, field.payload)]
        elif field.number == _SEGMENT:
            raise walk.file.damaged(f"tensor {errors.shown(name)} is in segments")
    what = f"tensor {errors.printable(name, 200)}"
    if code not in _DTYPES:
        raise WeightsError(
            f"{walk.file.path}: {what} has ONNX's data type {code}; expected numbers: "
            f"{', '.join(map(str, _DTYPES))}"
        )
    dtype = _DTYPES[code]
    if elsewhere:
        content = _read_elsewhere(walk.file, elsewhere, what)
    elif integers is not None and not chunks:
        if dtype.kind not in "iub":  # float16 as 32 bits each
            raise WeightsError(
                f"{walk.file.path}: {what} has its {dtype} numbers one by one; save it "
                "with raw data, as onnx.numpy_helper.from_array does"
            )
        content = np.array([n % (1 << 64) for n in integers], np.uint64)
        content = content.astype(dtype).view(np.uint8)
    else:
        parts = [*chunks, message[:0]]
        content = chunks[0] if len(chunks) == 1 else np.concatenate(parts)
    return name, mapped_file.view(walk.file, content, dtype, shape, what)


def _read_elsewhere(
    file: mapped_file.MappedFile, entries: dict[str, str], what: str
) -> np.ndarray:
    """The bytes of a tensor in another file: `location`, `offset`, `length`."""
    if "location" not in entries:
        raise file.damaged(f"{what} is in another file, without its name")
    other = file.beside(entries["location"])
    try:
        offset = int(entries.get("offset", "0"))
        size = int(entries.get("length", other.size - offset))
    except ValueError as error:
        raise file.damaged(f"{what} lies at {errors.shown(entries)}") from error
    return other.slice(offset, size, what)


def _read_pair(walk: protobuf.Walk, message: np.ndarray) -> tuple[str, str]:
    """A StringStringEntryProto."""
    texts = {1: "", 2: ""}
    for field in walk.fields(message):
        if field.number in texts:
            texts[field.number] = field.text
    return texts[1], texts[2]


def _read_value(walk: protobuf.Walk, message: np.ndarray) -> Value:
    """A ValueInfoProto: of its type the tensor's data type and shape."""
    name, code, shape = "", 0, []
    for field in walk.fields(message):
        if field.number == 1:
            name = field.text
        elif field.number == 2 and field.wire_type == protobuf.LEN:
            for kind in walk.fields(field.payload):
                if kind.number == 1 and kind.wire_type == protobuf.LEN:
                    code, shape = _read_tensor_type(walk, kind.payload)
    return Value(name, code, tuple(shape))


def _read_tensor_type(
    walk: protobuf.Walk, message: np.ndarray
) -> tuple[int, list[int | None]]:
    code, shape = 0, []
    for field in walk.fields(message):
        if field.number == 1:
            code = field.value
        elif field.number == 2 and field.wire_type == protobuf.LEN:
            for size in walk.fields(field.payload):
                if size.number == 1:
                    values = {f.number: f.value for f in walk.fields(size.payload)}
                    shape.append(values.get(1) or None)
    return code, shape
