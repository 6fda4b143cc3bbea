"""A net layer by layer: shapes, receptive fields, parameters, multiply-adds, memory.

Everything follows from shapes that JAX infers: no params are made.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import tabulate

from vgg_flax import errors
from vgg_flax.model import vgg
from vgg_flax.model.table import variant_name


class DescriptionError(errors.VGGFlaxError):
    """An input that the net can't take."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a layer gives, and what it costs.

    Attributes:
      name: as in params (`conv1_1`, `bn1_1`, `fc6`), or `lrn1`, `pool1`.
      shape: of its output, `[batch, height, width, channels]`.
      receptive_field: side of the input window that a position of it sees, in pixels.
      stride: pixels between the windows of neighbouring positions.
      center: the middle of the first position's window, in pixels, where the first
        pixel's own middle is 0. Position i looks at `center + stride * i`.
      parameters: trainable ones.
      macs: multiply-adds of convolutions and fully connected layers, over the batch.
      activation_bytes: of its output, which ReLU overwrites in place.
    """

    name: str
    shape: tuple[int, ...]
    receptive_field: int
    stride: int
    center: float
    parameters: int
    macs: int
    activation_bytes: int


@dataclasses.dataclass(frozen=True)
class Description:
    """A net on images of one shape.

    Attributes:
      variant: a key of `vgg_flax.VARIANTS`.
      shape: of the images, `[batch, height, width, channels]`.
      dtype: of the computation.
      parameter_bytes: of all the params as they are stored.
      layers: from the image to the scores.
    """

    variant: str
    shape: tuple[int, ...]
    dtype: str
    parameter_bytes: int
    layers: tuple[Layer, ...]

    def __getitem__(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    @property
    def parameters(self) -> int:
        """Trainable ones, of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole batch."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Of all outputs together: what a gradient needs kept from the forward pass."""
        return sum(layer.activation_bytes for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, with the totals."""
        totals = ("parameters", "macs", "activation_bytes")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in totals}


def describe(net: vgg.VGG, shape: tuple[int, int, int, int]) -> Description:
    """The layers of `net` for images of `shape`: `[batch, height, width, channels]`.

    Raises:
      DescriptionError: images too few, too small, or of another number of channels.
    """
    if shape[0] < 1:
        raise DescriptionError(f"images of shape {shape}; expected at least one")
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    try:
        variables = jax.eval_shape(net.init, jax.random.key(0), images)
    except ValueError as error:
        raise DescriptionError(str(error)) from error

    features = functools.partial(net.apply, layers=net.layer_names, method="features")
    outputs = jax.eval_shape(features, variables, images)
    shapes = {name: outputs[name].shape for name in net.layer_names}
    walk = _Walk(net, variables["params"], shapes)
    return Description(
        variant=variant_name(net.variant),
        shape=shape,
        dtype=str(jnp.dtype(net.dtype)),
        parameter_bytes=sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(variables["params"])
        ),
        layers=walk.layers(),
    )


class _Walk:
    """Goes through a net's layers, and keeps the place of the receptive field."""

    def __init__(self, net: vgg.VGG, params: Any, shapes: dict[str, tuple[int, ...]]):
        self._net, self._params, self._shapes = net, params, shapes
        self._layers: list[Layer] = []
        self._field, self._stride, self._center = 1, 1, 0.0

    def layers(self) -> tuple[Layer, ...]:
        for name in self._shapes:
            if name.startswith(("conv", "fc")):
                self._convolution(name)
            elif name.startswith("pool"):
                self._pool(name)
            elif name.startswith(("bn", "lrn")):
                self._add(name)
        return tuple(self._layers)

    def _convolution(self, name: str) -> None:
        kernel = self._params[name]["kernel"].shape  # HWIO
        self._field += (kernel[0] - 1) * self._stride
        if name.startswith("fc"):  # not padded: its first window starts at 0
            self._center += (kernel[0] - 1) / 2 * self._stride
        self._add(name, math.prod(self._shapes[name][:3]) * math.prod(kernel))

    def _pool(self, name: str) -> None:
        self._field += self._stride
        self._center += self._stride / 2
        self._stride *= 2
        self._add(name)

    def _add(self, name: str, macs: int = 0) -> None:
        parameters = jax.tree.leaves(self._params.get(name, {}))
        itemsize = jnp.dtype(self._net.dtype).itemsize
        self._layers.append(
            Layer(
                name=name,
                shape=self._shapes[name],
                receptive_field=self._field,
                stride=self._stride,
                center=self._center,
                parameters=sum(leaf.size for leaf in parameters),
                macs=macs,
                activation_bytes=math.prod(self._shapes[name]) * itemsize,
            )
        )


def to_text(description: Description) -> str:
    """The layers as a table, with the totals under it."""
    header = (
        "layer",
        "output",
        "field",
        "stride",
        "parameters",
        "MMACs",
        f"kB, {description.dtype}",
    )
    rows = [
        (
            layer.name,
            " x ".join(map(str, layer.shape)),
            layer.receptive_field,
            layer.stride,
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs / 1e6:,.1f}" if layer.macs else "",
            f"{layer.activation_bytes / 1e3:,.1f}",
        )
        for layer in description.layers
    ]
    align = ("left", "left", *["right"] * 5)
    table = tabulate.tabulate(
        rows, header, "simple", colalign=align, disable_numparse=True
    )
    shape = " x ".join(map(str, description.shape))
    return (
        f"{description.variant} on images of {shape}\n\n{table}\n\n"
        f"parameters   {description.parameters:,} "
        f"({description.parameter_bytes / 1e6:,.1f} MB)\n"
        f"computation  {description.macs / 1e9:,.2f} GMACs\n"
        f"activations  {description.activation_bytes / 1e6:,.1f} MB"
    )
