"""A column of Table 1 and its head as a list: each layer's name, and what it does."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgg_flax.model import layers
from vgg_flax.model.table import STAGE_WIDTHS, STAGES, VARIANTS, variant_name

if TYPE_CHECKING:
    from vgg_flax.model.vgg import VGG

BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Call:
    """What a net is called with besides images: as of `VGG.__call__`."""

    train: bool = False
    example_index: jax.Array | None = None
    sizes: jax.Array | None = None


NamedLayer = tuple[str, Callable[[jax.Array], jax.Array]]


def named_layers(net: "VGG", parts: Sequence[int], call: Call) -> Iterator[NamedLayer]:
    """From the first of `parts` on; submodules are made when a layer is called."""
    for part in parts:
        yield from _stage(net, part, call) if part in STAGES else _head(net, call)


def _stage(net: "VGG", stage: int, call: Call) -> Iterator[NamedLayer]:
    variant = VARIANTS[variant_name(net.variant)]
    width = max(1, round(STAGE_WIDTHS[stage - 1] * net.width_multiplier))
    # After n pools a side is a 2**n-th.
    extents = None if call.sizes is None else call.sizes // 2 ** (stage - 1)
    conv_init, _ = layers.INITIALIZERS[net.initializer]

    def convolve(name: str, window: int, x: jax.Array) -> jax.Array:
        if extents is not None and window > 1:
            # What the layers before made of the padding (biases, say) would leak into
            # the image here.
            x = layers.keep_inside(x, extents)
        return _conv(net, name, width, window, conv_init, net.conv_bias)(x)

    def normalize(name: str, x: jax.Array) -> jax.Array:
        return nn.BatchNorm(
            use_running_average=not call.train or name in net.frozen,
            momentum=0.9,
            epsilon=BATCH_NORM_EPSILON,
            dtype=net.dtype,
            param_dtype=net.param_dtype,
            axis_name=net.batch_norm_axis,
            name=name,
        )(x)

    for i, window in enumerate(variant.stages[stage - 1], start=1):
        conv, norm = f"conv{stage}_{i}", f"bn{stage}_{i}"
        yield conv, functools.partial(convolve, conv, window)
        if variant.batch_norm:
            yield norm, functools.partial(normalize, norm)
        yield f"relu{stage}_{i}", layers.relu
    if variant.lrn and stage == 1:
        yield "lrn1", layers.local_response_normalization
    yield f"pool{stage}", layers.POOLINGS[net.pooling]


def _head(net: "VGG", call: Call) -> Iterator[NamedLayer]:
    _, fc_init = layers.INITIALIZERS[net.initializer]

    def average(x: jax.Array) -> jax.Array:
        extents = jnp.array([x.shape[1:3]]) if call.sizes is None else call.sizes // 32
        return layers.adaptive_average_pool(x, net.fc6_window, extents)

    def connect(name: str, width: int, window: int, x: jax.Array) -> jax.Array:
        if call.train and net.dropout_rate and net.head == "fc" and name != "fc6":
            key, index = net.make_rng("dropout"), call.example_index
            index = jnp.arange(x.shape[0]) if index is None else index
            x = layers.example_dropout(x, net.dropout_rate, key, index)
        return _conv(net, name, width, window, fc_init)(x)

    if net.adaptive_pool and net.head in ("fc", "linear"):
        yield "avgpool", average
    if net.head == "fc":
        for k, width in enumerate(net.fc_widths, start=6):
            window = net.fc6_window if k == 6 else 1
            yield f"fc{k}", functools.partial(connect, f"fc{k}", width, window)
            yield f"relu{k}", layers.relu
    if net.head != "none":
        window = net.fc6_window if net.head == "linear" else 1
        scores = functools.partial(connect, "fc8", net.num_classes, window)
        yield "fc8", lambda x: scores(x).astype(net.param_dtype)


def _conv(
    net: "VGG",
    name: str,
    width: int,
    window: int,
    kernel_init: layers.Initializer,
    use_bias: bool = True,
) -> layers.Conv:
    return layers.Conv(
        features=width,
        window=window,
        padding="VALID" if name.startswith("fc") else "SAME",
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=net.dtype,
        param_dtype=net.param_dtype,
        name=name,
    )
