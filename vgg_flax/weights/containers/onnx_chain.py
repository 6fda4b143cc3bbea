"""An ONNX graph that is one chain of layers -> its tensors, by stage and number.

From the image on: what normalises its pixels; stages of convolutions, each with its
ReLU and maybe BatchNorm, that end with a pool; FC layers, written as Gemm, as MatMul
and Add, or as convolutions. Whatever else a graph does is an error that names the node:
its tensors alone would be another net.
"""

import math
from collections.abc import Callable

import numpy as np

from vgg_flax import errors
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import (
    mapped_file,
    onnx_constants,
    onnx_file,
    onnx_layers,
    onnx_pixels,
)
from vgg_flax.weights.containers.onnx_constants import given
from vgg_flax.weights.containers.onnx_file import Node
from vgg_flax.weights.containers.onnx_layers import Chain, Layer, expect

# What a stranger's attributes and shapes may raise, besides what is raised here.
_UNFIT = (ValueError, TypeError, LookupError, OverflowError)


def read(file: mapped_file.MappedFile) -> Chain:
    """What the file's graph is.

    Raises:
      WeightsError: as of `onnx_file.read`, or it is something else than such a chain.
    """
    return _Walk(onnx_file.read(file)).chain()


class _Walk:
    """Along the chain; a step raises ValueError where its node does not fit.

    Of the value at hand is known:
      last: what gave it: "image", "conv", "norm", "relu", "lrn", "pool", "mean" (a
        global pool), "fc", "softmax".
      order: its axes: an image's by number, a map's "NCHW" or "NHWC", vectors' "NC".
      flat: of vectors that were a map: in which order, "CHW" or "HWC".
      side: of the map, where it is known.
    """

    def __init__(self, graph: onnx_file.Graph):
        self.graph = graph
        self.constants, self.nodes = onnx_constants.split(graph)
        images = [value for value in graph.inputs if value.name not in self.constants]
        if len(images) != 1 or len(images[0].shape) not in (0, 4):
            found = ", ".join(f"{v.name} {[*v.shape]}" for v in images) or "nothing"
            raise self._error(f"it takes {found}; expected images alone, of four axes")
        self.image = images[0]
        self.last, self.order, self.flat = "image", "0123", ""
        self.side: int | None = None
        self.image_side: int | None = None
        self.stages: list[list[Layer]] = [[]]
        self.fcs: list[Layer] = []
        self.steps = onnx_pixels.Steps()
        self.normalization = onnx_pixels.Normalization((), ())
        self.poolings: set[str] = set()
        self.has_lrn = self.is_pooled = False
        self.notes: list[str] = []

    def chain(self) -> Chain:
        """Follows the image to the end."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in {*node.inputs} - {""}:
                users.setdefault(name, []).append(node)
        value = self.image.name
        while followers := users.pop(value, []):
            if len(followers) > 1:
                names = " and ".join(map(_shown, followers[:2]))
                raise self._error(f"{errors.shown(value)} branches, to {names}")
            try:
                value = self._step(followers[0], value)
            except _UNFIT as error:
                raise self._error(f"{_shown(followers[0])} {error}") from error
        if value not in {output.name for output in self.graph.outputs}:
            raise self._error(f"it ends with {errors.shown(value)}, which is no output")
        self._check_end()
        layers = onnx_layers.named(self.stages, self.fcs)
        parts = [
            (f"{k}.{part}", v, part) for k, v in layers.items() for part in v.names
        ]
        return Chain(
            tensors={name: layer.arrays[part] for name, layer, part in parts},
            names={name: layer.names[part] for name, layer, part in parts},
            side=self.image_side,
            normalization=self.normalization,
            pooling=next(iter(self.poolings)),
            lrn=self.has_lrn,
            notes=tuple(self.notes),
            metadata=self.graph.metadata,
        )

    def _step(self, node: Node, value: str) -> str:
        """Takes a node into account; returns the name of what it gives."""
        if node.op not in _STEPS:
            raise ValueError("is no layer of a VGG")
        if node.inputs[0] != value and node.op not in ("Add", "Mul"):
            raise ValueError(
                f"takes {errors.shown(value)} as something else than input"
            )
        if self.last == "softmax" and node.op not in ("Identity", "Cast"):
            raise ValueError("comes after Softmax")
        _STEPS[node.op](self, node)
        return node.outputs[0]

    # Layers with weights

    def conv(self, node: Node) -> None:
        """A convolution; an FC layer, where it isn't padded or follows one."""
        kernel = given(node, 1, self.constants)
        if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or not kernel.size:
            raise ValueError(f"has a kernel of shape {kernel.shape}")
        window, pad = kernel.shape[2], onnx_layers.padding(node, kernel.shape[2])
        expect(node, group=1, dilations=[1, 1], strides=[1, 1])
        expect(node, kernel_shape=[window, window])
        if self.last == "image":
            self._find_axes(kernel.shape[1])
        if self.order != "NCHW":
            raise ValueError(f"takes {self.order}; expected NCHW")
        layer = self._layer(node, kernel)
        is_fc = pad == 0 and (window > 1 or self.last in ("pool", "mean"))
        if is_fc or (self.fcs and not pad):
            self.side = None if self.side is None else self.side + 1 - window
            self._connect(layer)
        elif pad == window // 2 and window % 2:
            self._after("image", "relu", "lrn", "pool")
            self.stages[-1].append(layer)
            self.last = "conv"
        else:
            raise ValueError(f"pads {window}x{window} by {pad}; expected {window // 2}")

    def dense(self, node: Node) -> None:
        """Gemm, or MatMul: `[out, in]`, turned to OIHW by the order of the map."""
        expect(node, alpha=1.0, beta=1.0, transA=0)
        matrix = given(node, 1, self.constants)
        if self.order != "NC" or matrix.ndim != 2 or not matrix.size:
            raise ValueError(f"multiplies {self.order} by {matrix.shape}, no vectors")
        is_turned = node.op == "Gemm" and node.attributes.get("transB", 0) == 1
        inputs = matrix.shape[1 if is_turned else 0]
        channels, side = inputs, 1
        if self.flat:
            channels = self.stages[-2][-1].width
            side = math.isqrt(inputs // channels)
        is_other = self.flat and self.side not in (side, None)
        if side**2 * channels != inputs or is_other:
            raise ValueError(f"takes {inputs} numbers, no map of {channels} channels")
        order = self.flat or "CHW"
        kernel = onnx_layers.windowed(
            matrix, channels, side, order, out_first=is_turned
        )
        self._connect(self._layer(node, kernel))
        self.flat, self.side = "", 1

    def _layer(self, node: Node, kernel: np.ndarray) -> Layer:
        layer = Layer(node)
        layer.add("W", node.inputs[1], kernel)
        if node.op != "MatMul" and len(node.inputs) > 2 and node.inputs[2]:
            layer.add("B", node.inputs[2], given(node, 2, self.constants))
        return layer

    def _connect(self, layer: Layer) -> None:
        self._after(*(("relu",) if self.fcs else ("pool", "mean")))
        self.fcs.append(layer)
        self.last = "fc"

    def norm(self, node: Node) -> None:
        """BatchNormalization with running statistics."""
        self._after("conv")
        expect(node, training_mode=0)
        for place, part in enumerate(("scale", "B", "mean", "var"), start=1):
            array = given(node, place, self.constants)
            array = onnx_layers.variance(node, array) if part == "var" else array
            self.stages[-1][-1].add(f"norm.{part}", node.inputs[place], array)
        self.last = "norm"

    def add(self, node: Node) -> None:
        """The bias of the layer before, or a step of the pixels' normalisation."""
        if self.last == "image":
            return self.pixels(node)
        self._after("conv", "fc")
        place = 1 if node.inputs[1] in self.constants else 0
        layer = self.fcs[-1] if self.last == "fc" else self.stages[-1][-1]
        return layer.add("B", node.inputs[place], given(node, place, self.constants))

    # Layers without

    def relu(self, node: Node) -> None:
        """After each convolution, and each FC layer but the last."""
        self._after("conv", "norm", "fc")
        self.last = "relu"

    def lrn(self, node: Node) -> None:
        """Local response normalisation, as in the paper's A-LRN."""
        self._after("relu")
        onnx_layers.check_lrn(node)
        if self.fcs or [*map(len, self.stages)] != [1]:
            raise ValueError("is not after the first ReLU, as that of A-LRN")
        self.has_lrn, self.last = True, "lrn"

    def pool(self, node: Node) -> None:
        """2x2 pixels; or an average of one pixel, or of the whole map."""
        kernel, pad = node.attributes.get("kernel_shape"), onnx_layers.padding(node, 2)
        if node.op == "AveragePool" and not pad and self.last in ("pool", "fc"):
            if kernel == [self.side, self.side]:
                return self.mean(node)
            return expect(node, kernel_shape=[1, 1], strides=[1, 1])  # an adaptive one
        self._after("relu", "lrn")
        expect(node, kernel_shape=[2, 2], dilations=[1, 1])
        if node.attributes.get("strides") != [2, 2] or self.fcs:
            raise ValueError("is no pool of 2x2 pixels that ends a stage")
        is_odd = self.side is None or self.side % 2
        if (pad or node.attributes.get("ceil_mode", 0)) and is_odd:
            raise ValueError("pads a map whose side is odd, or not known")
        self.poolings.add("average" if node.op == "AveragePool" else "max")
        self.side = None if self.side is None else self.side // 2
        self.stages.append([])
        self.last = "pool"
        return None

    def mean(self, node: Node) -> None:
        """The mean of the last map, or of the score map."""
        self._after("pool", "fc")
        if node.op == "ReduceMean":
            onnx_constants.check_spatial(node, self.constants, self.order)
        if self.last == "pool":
            self.is_pooled, self.last = self.side != 1, "mean"
        self.side = 1
        if node.op == "ReduceMean" and not node.attributes.get("keepdims", 1):
            self.order = "NC"

    def flatten(self, node: Node) -> None:
        """Flatten, Squeeze, or Reshape to vectors."""
        if self.order == "NC":
            return  # again
        self._after("pool", "mean", "fc", *(["relu"] if self.fcs else []))
        if node.op == "Flatten":
            expect(node, axis=1)
        elif node.op == "Squeeze":
            onnx_constants.check_spatial(node, self.constants, self.order)
        else:
            target = node.attributes.get("shape")
            if len(node.inputs) > 1:  # None where it is made of the map's own sizes
                target = self.constants.get(node.inputs[1])
            if target is not None and np.size(target) != 2:
                raise ValueError(f"gives {errors.shown(target)}; expected vectors")
        if self.fcs and self.side not in (1, None):
            raise ValueError(f"takes a score map of {self.side} pixels a side")
        self.flat = self.order[1:] if self.last == "pool" else ""
        self.order = "NC"

    def transpose(self, node: Node) -> None:
        """Between NHWC and NCHW; of the image as well."""
        order = node.attributes.get("perm")
        if not isinstance(order, list) or sorted(order) != [*range(len(self.order))]:
            raise ValueError(f"turns axes by {errors.shown(order)}")
        self.order = "".join(self.order[axis] for axis in order)
        if self.last != "image" and self.order not in ("NCHW", "NHWC", "NC"):
            raise ValueError(f"turns a map to {self.order}")

    def skip(self, node: Node) -> None:
        """What changes nothing in a net that is not trained."""
        onnx_constants.check_neutral(node, self.constants)

    def softmax(self, node: Node) -> None:
        """Of the logits, which are what our nets give."""
        self._after("fc")
        self.notes.append(f"its {node.op} is left out, outputs are logits")
        self.last = "softmax"

    # Pixels

    def pixels(self, node: Node) -> None:
        """Sub, Div, Mul and Add of one number a channel, before the first layer."""
        self._after("image")
        place = 1 if node.inputs[1] in self.constants else 0
        if place == 0 and node.op in ("Sub", "Div"):
            raise ValueError("takes the image from a constant")
        self.steps.arithmetic(node.op, given(node, place, self.constants), self.order)

    def flip(self, node: Node) -> None:
        """Gather or Slice, where they turn blue, green, red to red, green, blue."""
        self._after("image")
        axis = onnx_constants.reversed_axis(node, self.constants)
        if axis is None:
            raise ValueError("does more than to turn the order of channels")
        self.steps.flip(self.order[axis])

    def _find_axes(self, channels: int) -> None:
        """Which axes of the image are channels, height and width, for layer one."""
        axis, is_uint8 = self.order[1], self.image.dtype == onnx_file.UINT8
        sizes = self.image.shape or (None,) * 4
        sides = {sizes[int(a)] for a in self.order[2:]}
        if self.order[0] != "0" or sizes[int(axis)] not in (channels, None):
            raise ValueError(f"takes {channels} channels of images {[*sizes]}")
        if len(sides) == 1:
            self.image_side = self.side = sides.pop()
        elif None not in sides:
            raise ValueError(f"takes images {[*sizes]}, which are not square")
        self.normalization = self.steps.along(axis, channels, is_uint8)
        self.order = "NCHW"

    # The end, and what the above is written in

    def _check_end(self) -> None:
        if len(self.stages) == 1 or self.stages[-1]:
            raise self._error(f"it ends with {self.last}, before a stage's pool")
        if self.fcs and self.last not in ("fc", "softmax"):
            raise self._error(f"it ends with {self.last} after the last FC layer")
        if self.is_pooled and len(self.fcs) > 1:
            second = _shown(self.fcs[1].node)
            raise self._error(f"{second} is a second FC layer after a global pool")
        if len(self.poolings) > 1:
            raise self._error("it pools by maximum and by average")

    def _after(self, *kinds: str) -> None:
        if self.last not in kinds:
            raise ValueError(f"comes after {self.last}; expected {' or '.join(kinds)}")

    def _error(self, why: str) -> WeightsError:
        return WeightsError(
            f"{self.graph.file.path}: the graph is not that of a VGG: {why}; export "
            "the plain net, for inference"
        )


def _shown(node: Node) -> str:
    return errors.printable(f"{node.op} {node.name!r}", 200)


_STEPS: dict[str, Callable[[_Walk, Node], None]] = {
    op: step
    for step, ops in (
        (_Walk.conv, "Conv"),
        (_Walk.dense, "Gemm MatMul"),
        (_Walk.norm, "BatchNormalization"),
        (_Walk.add, "Add"),
        (_Walk.relu, "Relu"),
        (_Walk.lrn, "LRN"),
        (_Walk.pool, "MaxPool AveragePool"),
        (_Walk.mean, "GlobalAveragePool ReduceMean"),
        (_Walk.flatten, "Flatten Reshape Squeeze"),
        (_Walk.transpose, "Transpose"),
        (_Walk.skip, "Cast Dropout Identity"),
        (_Walk.softmax, "Softmax LogSoftmax"),
        (_Walk.pixels, "Sub Div Mul"),
        (_Walk.flip, "Gather Slice"),
    )
    for op in ops.split()
}
