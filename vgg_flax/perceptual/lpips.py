"""LPIPS v0.1 (Zhang et al. 2018) on VGG16: how different two pictures look."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from vgg_flax import config
from vgg_flax.net import Net

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
# LPIPS's own: nearly ImageNet's mean and std, of pixels in [-1, 1].
_SHIFT = np.array((-0.030, -0.088, -0.188), np.float32).reshape(1, 1, 1, 3)
_SCALE = np.array((0.458, 0.448, 0.450), np.float32).reshape(1, 1, 1, 3)
_EPSILON = 1e-10
# `tests/files/make_lpips_weights.py` made it.
_FILE = pathlib.Path(__file__).with_name("lpips_vgg.npz")


def lpips(
    net: Net,
    images: jax.Array,
    others: jax.Array,
    *,
    range: tuple[float, float] = (-1.0, 1.0),
    any_pixels: bool = False,
) -> jax.Array:
    """How different pairs of images look: `[batch]`, 0 for equal ones.

    Zhang et al. 2018, equation 1, with the published linear weights (v0.1, "vgg"): of
    five layers, each position's channels are scaled to length 1; the squared
    difference is weighted by channel and averaged over positions.

    The net's features are computed in `net.model.dtype` (load with dtype="bfloat16" for
    a fast one), the rest in float32, or in float64 if that is. For a loss, close over
    `net`, or pass it through `jit` and take no gradient by it.

    Args:
      net: a vgg16 with torchvision's pixels; the published weights were trained on
        torchvision's. The head is not used: `load(..., include_top=False)` will do.
      images: `[batch, height, width, 3]`, RGB, of any size from 16 pixels; floats in
        `range`, or uint8 (0 to 255).
      others: likewise, of the same size.
      range: of floats: the values of black and of white. Values beyond are an error
        where they are known, that is not within `jit`.
      any_pixels: whether to take a net of other pixels than torchvision's, which is
        given its own; distances are then others than the published ones.

    Raises:
      ValueError: another net, or images that are none of those.
    """
    scale = _lpips_pixels if _is_torchvisions(net) else _own_pixels(net)
    _check_net(net, any_pixels)
    if images.shape != others.shape:
        raise ValueError(f"images {images.shape}, others {others.shape}; expected one")
    net.model.check(images, LAYERS[-1])
    mine: Any
    theirs: Any
    mine, theirs = (
        net.model.apply(
            net.variables,
            scale(_to_signed(x, range, net.model.param_dtype)),
            LAYERS,
            method="features",
        )
        for x in (images, others)
    )
    total = jnp.zeros(len(images), net.model.param_dtype)
    for name, weights in _linear_weights().items():
        a, b = (_unit(x[name].astype(total.dtype)) for x in (mine, theirs))
        total += (jnp.square(a - b) @ weights).mean(axis=(1, 2))
    return total


def _check_net(net: Net, any_pixels: bool) -> None:
    model = net.model
    if (net.variant, model.width_multiplier, model.pooling) != ("vgg16", 1, "max"):
        raise ValueError(
            f"LPIPS is of vgg16, in full width and with max pools; this is {model}"
        )
    if not (_is_torchvisions(net) or any_pixels):
        raise ValueError(
            f"LPIPS was fitted to torchvision's vgg16, and the pixels of this net "
            f"({net.source}) are others, of which distances differ; any_pixels=True "
            "takes it nevertheless"
        )


def _is_torchvisions(net: Net) -> bool:
    own = net.preprocessing.mean, net.preprocessing.std
    return np.allclose(own, (config.IMAGENET_MEAN, config.IMAGENET_STD))


def _lpips_pixels(x: jax.Array) -> jax.Array:
    return (x - _SHIFT) / _SCALE


def _own_pixels(net: Net) -> Callable[[jax.Array], jax.Array]:
    return lambda x: net.preprocessing.normalize((x + 1) * 127.5, dtype=x.dtype)


def _to_signed(x: jax.Array, range: tuple[float, float], dtype: Any) -> jax.Array:
    """Pixels in [-1, 1]."""
    x = jnp.asarray(x)
    if x.dtype == jnp.uint8:
        low, high = 0.0, 255.0
    elif jnp.issubdtype(x.dtype, jnp.floating):
        low, high = map(float, range)
    else:
        raise ValueError(f"images of {x.dtype}; expected uint8, or floats in {range}")
    if not low < high:
        raise ValueError(f"range={range}; expected the values of black and of white")
    if x.size and not isinstance(x, jax.core.Tracer):
        values = np.asarray(x)  # not by JAX, which within `jit` would only note it down
        least, largest = float(values.min()), float(values.max())
        slack = 1e-3 * (high - low)  # of a resize, or of bfloat16
        if not (low - slack <= least and largest <= high + slack):
            raise ValueError(
                f"images have values from {least:.4g} to {largest:.4g}; expected "
                f"{low:g} to {high:g}: give range=, or clip them"
            )
    return (x.astype(dtype) - low) * (2 / (high - low)) - 1


def _unit(x: jax.Array) -> jax.Array:
    """Each position's channels over their length; zeros stay, and have a derivative."""
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    is_zero = squares == 0
    length = jnp.sqrt(jnp.where(is_zero, 1, squares)) * ~is_zero
    return x / (length + _EPSILON)


@functools.cache
def _linear_weights() -> dict[str, np.ndarray]:
    with np.load(_FILE) as file:
        return {name: file[name] for name in LAYERS}
