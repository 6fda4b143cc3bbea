"""ONNX files as exporters write them, and others, without the package `onnx`."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

# Installed with tensorboardX and tensorflow-datasets.
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FLOAT, UINT8 = 1, 2
_CODES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "float16": 10, "bool": 9}
_REPEATED, _OPTIONAL = 3, 1  # descriptor_pb2's labels
_KINDS = {"float": 2, "int64": 3, "int32": 5, "string": 9, "bytes": 12}
# onnx.proto's messages, with the fields that are used here: number, name, label, kind.
_MESSAGES = {
    "Pair": ["1 key o string", "2 value o string"],
    "Tensor": [
        *("1 dims r int64", "2 data_type o int32", "4 float_data r float"),
        *("7 int64_data r int64", "8 name o string", "9 raw_data o bytes"),
        *("13 external_data r Pair", "14 data_location o int32"),
    ],
    "Attribute": [
        *("1 name o string", "2 f o float", "3 i o int64", "4 s o bytes"),
        *("5 t o Tensor", "7 floats r float", "8 ints r int64", "20 type o int32"),
    ],
    "Node": [
        *("1 input r string", "2 output r string", "3 name o string"),
        *("4 op_type o string", "5 attribute r Attribute", "7 domain o string"),
    ],
    "Dimension": ["1 dim_value o int64", "2 dim_param o string"],
    "Shape": ["1 dim r Dimension"],
    "TensorType": ["1 elem_type o int32", "2 shape o Shape"],
    "Type": ["1 tensor_type o TensorType"],
    "Value": ["1 name o string", "2 type o Type"],
    "Graph": [
        *("1 node r Node", "2 name o string", "5 initializer r Tensor"),
        *("11 input r Value", "12 output r Value"),
    ],
    "Opset": ["1 domain o string", "2 version o int64"],
    "Model": [
        *("1 ir_version o int64", "2 producer_name o string", "7 graph o Graph"),
        *("8 opset_import r Opset", "14 metadata_props r Pair"),
    ],
}


@functools.cache
def messages() -> dict[str, Any]:
    """Classes for the messages, by short names of ours."""
    file = descriptor_pb2.FileDescriptorProto(name="tests_onnx.proto", package="tests")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for number, name, label, kind in map(str.split, fields):
            field = message.field.add(name=name, number=int(number))
            field.label = _REPEATED if label == "r" else _OPTIONAL
            field.type = _KINDS.get(kind, 11)
            if kind not in _KINDS:
                field.type_name = f".tests.{kind}"
            elif label == "r" and name.endswith("_data"):
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"tests.{name}")
        )
        for name in _MESSAGES
    }


def tensor(name: str, array: Any) -> Any:
    """With raw data."""
    array = np.asarray(array)
    proto = messages()["Tensor"](name=name, dims=array.shape)
    proto.data_type, proto.raw_data = _CODES[array.dtype.name], array.tobytes()
    return proto


class Graph:
    """A graph that grows by nodes, each on what the last one gave.

    Attributes:
      model: the message.
      value: the name of what the last node gave.
    """

    def __init__(
        self, shape: Sequence[Any] = ("N", 3, 64, 64), dtype: int = FLOAT, ir: int = 8
    ):
        self.model = messages()["Model"](ir_version=ir, producer_name="tests")
        self.model.opset_import.add(domain="", version=13)
        self.value, self._count = "images", 0
        self.declare("images", shape, dtype)

    def declare(self, name: str, shape: Sequence[Any], dtype: int = FLOAT) -> None:
        """Adds an input of the graph."""
        kind = self.model.graph.input.add(name=name).type.tensor_type
        kind.elem_type = dtype
        kind.shape.SetInParent()
        for size in shape:
            if isinstance(size, int):
                kind.shape.dim.add(dim_value=size)
            else:
                kind.shape.dim.add(dim_param=size)

    def constant(self, array: Any, name: str = "") -> str:
        """Adds an initialiser; returns its name."""
        name = name or f"constant{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(tensor(name, array))
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node that is on its own; returns the name of what it gives."""
        self._count += 1
        domain, _, op = op.rpartition(".")
        name = f"{op.lower()}_{self._count}"
        node = self.model.graph.node.add(op_type=op, name=name, input=inputs)
        node.output.append(f"value{self._count}")
        node.domain = domain
        for key, value in attributes.items():
            attribute = node.attribute.add(name=key)
            if isinstance(value, bytes):
                attribute.s = value
            elif isinstance(value, np.ndarray):
                attribute.t.CopyFrom(tensor("", value))
            elif isinstance(value, int):
                attribute.i = value
            elif isinstance(value, float):
                attribute.f = value
            else:
                attribute.ints.extend(value)
        return node.output[0]

    def add(self, op: str, *others: Any, **attributes: Any) -> "Graph":
        """Adds a node on the value at hand and others: arrays, or names."""
        names = [o if isinstance(o, str) else self.constant(o) for o in others]
        self.value = self.node(op, [self.value, *names], **attributes)
        return self

    def write(self, path: pathlib.Path, *outputs: str) -> pathlib.Path:
        """Ends with the value at hand, or what is given; returns `path`."""
        del self.model.graph.output[:]
        for name in outputs or (self.value,):
            self.model.graph.output.add(name=name).type.tensor_type.elem_type = FLOAT
        path.write_bytes(self.model.SerializeToString())
        return path

    # Parts of a VGG

    def conv(
        self,
        tensors: dict[str, np.ndarray],
        prefix: str,
        bias: str = "input",
        **other: Any,
    ) -> "Graph":
        """A convolution of torchvision's tensors, padded, its bias inside or added."""
        kernel = tensors[f"{prefix}.weight"]
        pads = [kernel.shape[2] // 2] * 4
        given = {"kernel_shape": kernel.shape[2:], "pads": pads, "strides": [1, 1]}
        names = [self.constant(kernel, f"{prefix}.weight")]
        if bias == "input":
            names.append(self.constant(tensors[f"{prefix}.bias"], f"{prefix}.bias"))
        self.add("Conv", *names, **{**given, "group": 1, **other})
        if bias == "add":
            self.add("Add", tensors[f"{prefix}.bias"].reshape(-1, 1, 1))
        return self

    def norm(
        self, tensors: dict[str, np.ndarray], prefix: str, **other: Any
    ) -> "Graph":
        """A BatchNormalization of torchvision's tensors."""
        leaves = ("weight", "bias", "running_mean", "running_var")
        names = [
            self.constant(tensors[f"{prefix}.{leaf}"], f"{prefix}.{leaf}")
            for leaf in leaves
        ]
        return self.add("BatchNormalization", *names, **{"epsilon": 1e-5, **other})

    def pool(self, op: str = "MaxPool", **other: Any) -> "Graph":
        """2x2 pixels."""
        return self.add(op, **{"kernel_shape": [2, 2], "strides": [2, 2], **other})

    def stages(
        self, tensors: dict[str, np.ndarray], bias: str = "input", pool: str = "MaxPool"
    ) -> "Graph":
        """All convolutions of torchvision's tensors, with ReLU and five pools."""
        indices = sorted(
            int(name.split(".")[1])
            for name, array in tensors.items()
            if name.startswith("features.") and np.ndim(array) == 4
        )
        for index, after in zip(indices, [*indices[1:], None], strict=True):
            self.conv(tensors, f"features.{index}", bias)
            step = 2
            if f"features.{index + 1}.running_var" in tensors:
                self.norm(tensors, f"features.{index + 1}")
                step = 3
            self.add("Relu")
            if after is None or after > index + step:
                self.pool(pool)
        return self

    def gemms(self, tensors: dict[str, np.ndarray]) -> "Graph":
        """FC layers as torch writes them."""
        for index in (0, 3, 6):
            prefix = f"classifier.{index}"
            names = [
                self.constant(tensors[f"{prefix}.{leaf}"], f"{prefix}.{leaf}")
                for leaf in ("weight", "bias")
            ]
            self.add("Gemm", *names, alpha=1.0, beta=1.0, transB=1)
            if index < 6:
                self.add("Relu")
        return self
