"""The layers of an ONNX graph that is one chain, and their tensors' names by place."""

import dataclasses
from typing import Any

import numpy as np

from vgg_flax import errors
from vgg_flax.model import BATCH_NORM_EPSILON
from vgg_flax.weights.containers import onnx_pixels
from vgg_flax.weights.containers.onnx_file import Node

# ONNX divides alpha by the size.
_LRN = {"size": 5, "alpha": 5e-4, "beta": 0.75, "bias": 2.0}


@dataclasses.dataclass(frozen=True)
class Chain:
    """What a graph is.

    Attributes:
      tensors: `conv1_1.W`, `conv1_1.B`, `conv1_1.norm.scale`, ..., `fc6.W`. Kernels are
        OIHW, those of FC layers too; that of a lone one that takes a pixel is
        `[out, in]`.
      names: the file's own name of each.
      side: of the images, where the file says it.
      normalization: what the graph does to the images before the first layer.
      pooling: "max" or "average".
      lrn: whether the first ReLU is followed by the normalisation of A-LRN.
      notes: what was passed over, a line each.
      metadata: the file's `metadata_props`.
    """

    tensors: dict[str, np.ndarray]
    names: dict[str, str]
    side: int | None
    normalization: onnx_pixels.Normalization
    pooling: str = "max"
    lrn: bool = False
    notes: tuple[str, ...] = ()
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Layer:
    """A convolution or FC layer; bias and BatchNorm may be nodes of their own.

    Attributes:
      node: the one with the kernel.
      arrays: by what `Chain.tensors` calls them after the layer's name.
      names: the file's own name of each; "" of what it leaves out.
    """

    node: Node
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, part: str, name: str, array: np.ndarray) -> None:
        """Adds a tensor; raises ValueError for a bias of another size or a second."""
        width = array.shape[0] if part == "W" else self.width
        if part in self.arrays or (part != "W" and array.size != width):
            raise ValueError(f"adds {array.shape}, no {part} of {width} channels")
        self.arrays[part] = array if part == "W" else array.reshape(-1)
        self.names[part] = name

    @property
    def width(self) -> int:
        """The number of channels it gives."""
        return self.arrays["W"].shape[0]


def named(stages: list[list[Layer]], fcs: list[Layer]) -> dict[str, Layer]:
    """`conv1_1`, ..., `fc6`, ... with a bias each that is needed; `fc8` if it is alone.

    A convolution without one needs none before BatchNorm, if no other has one.
    """
    convolutions = {
        f"conv{stage}_{number}": layer
        for stage, layers in enumerate(stages, start=1)
        for number, layer in enumerate(layers, start=1)
    }
    every = convolutions.values()
    has_bias = any("B" in layer.arrays or len(layer.arrays) == 1 for layer in every)
    first = 8 if len(fcs) == 1 else 6
    head = {f"fc{number}": layer for number, layer in enumerate(fcs, start=first)}
    for layer in (*(every if has_bias else ()), *fcs):
        if "B" not in layer.arrays:
            layer.add("B", "", np.zeros(layer.width, np.float32))
    if len(fcs) == 1 and fcs[0].arrays["W"].shape[2:] == (1, 1):
        fcs[0].arrays["W"] = fcs[0].arrays["W"][:, :, 0, 0]
    return convolutions | head


def windowed(
    matrix: np.ndarray, channels: int, side: int, order: str, *, out_first: bool
) -> np.ndarray:
    """A matrix on a map that was flattened in an order, "CHW" or "HWC", as OIHW."""
    axes = f"O{order}" if out_first else f"{order}O"
    sizes = {"C": channels, "H": side, "W": side}
    sizes["O"] = matrix.shape[0 if out_first else 1]
    array = matrix.reshape([sizes[axis] for axis in axes])
    return array.transpose([axes.index(axis) for axis in "OCHW"])


def variance(norm: Node, array: np.ndarray) -> np.ndarray:
    """A BatchNormalization's, as with our epsilon: the sum of both is the same."""
    epsilon = float(norm.attributes.get("epsilon", BATCH_NORM_EPSILON))
    if np.float32(epsilon) == np.float32(BATCH_NORM_EPSILON):
        return array
    with np.errstate(over="ignore"):  # what is infinite is refused with its tensor
        return (array.astype(np.float64) + (epsilon - BATCH_NORM_EPSILON)).astype("f4")


def expect(node: Node, **attributes: Any) -> None:
    """Raises ValueError for attributes that are there, and others."""
    for name, expected in attributes.items():
        found = node.attributes.get(name, expected)
        if found != expected:
            raise ValueError(f"has {name} {errors.shown(found)}; expected {expected}")


def check_lrn(node: Node) -> None:
    """Raises ValueError for an LRN with other constants than the paper's A-LRN."""
    found = {name: np.float32(node.attributes.get(name, 0)) for name in _LRN}
    if found != {name: np.float32(value) for name, value in _LRN.items()}:
        raise ValueError(f"is not that of A-LRN: {_LRN}")


def padding(node: Node, window: int) -> int:
    """How many pixels a node pads on each side; -1: not the same on all."""
    automatic = node.attributes.get("auto_pad", b"NOTSET")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        return window // 2
    pads = node.attributes.get("pads") if automatic == b"NOTSET" else None
    pads = pads or [0]
    return pads[0] if pads == pads[:1] * len(pads) else -1
