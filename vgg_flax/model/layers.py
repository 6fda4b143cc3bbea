"""What Table 1 is made of: convolution, relu, pools, LRN, dropout; and their masks."""

from collections.abc import Callable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from vgg_flax.model import convolution

# Convolutions and FC layers initialise differently in torchvision, hence the pairs
# (convolution, fully connected). "paper": the text's variance 1e-2 (std 0.1)
# overflows at 224 pixels; std 0.01 is the trainable reading.
Initializer = Callable[..., jax.Array]
INITIALIZERS: dict[str, tuple[Initializer, Initializer]] = {
    "paper": (nn.initializers.normal(0.01), nn.initializers.normal(0.01)),
    "glorot": (nn.initializers.glorot_uniform(), nn.initializers.glorot_uniform()),
    "he": (
        nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        nn.initializers.normal(0.01),
    ),
}


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), of whose derivation only the result is kept.

    The next layer keeps that anyway. XLA would rather keep x, compute relu wherever it
    is needed, and keep its result as well for a pool: two arrays for one.
    """
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    y = jax.lax.optimization_barrier(relu(x))
    return y, jnp.where(y > 0, tangent, jnp.zeros_like(tangent))


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 windows, stride 2, an odd last row or column dropped: `[B, H, W, C]`.

    On TPUs, which would move the whole map to take it apart, a window reduction;
    elsewhere the largest of four views, whose gradient also compiles under
    deterministic GPU operations. On CPUs jaxlib 0.10 would fuse a reduction with fc6's
    matmul and take 1.1 s for both at a batch of eight, where they take 0.06 s. Of
    equals the first one takes the gradient.
    """
    return jax.lax.platform_dependent(x, tpu=_window_max, default=_block_max)


def average_pool(x: jax.Array) -> jax.Array:
    """The mean where `max_pool` has the maximum."""
    (a, b), (c, d) = _corners(x)
    return (a + b + c + d) / 4


def _window_max(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (2, 2), (2, 2), "VALID")


def _blocks(x: jax.Array) -> jax.Array:
    """`[B, H, W, C]` -> `[B, H // 2, 2, W // 2, 2, C]`."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)


def _corners(x: jax.Array) -> list[list[jax.Array]]:
    """The windows' upper left, upper right; lower left, lower right pixels."""
    blocks = _blocks(x)
    return [[blocks[:, :, i, :, j] for j in (0, 1)] for i in (0, 1)]


@jax.custom_jvp
def _block_max(x: jax.Array) -> jax.Array:
    (a, b), (c, d) = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@_block_max.defjvp
def _block_max_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Where a window's largest pixel stands is found once, behind a barrier.

    JAX's own derivative compares each pixel with the maximum, and XLA on CPU gets that
    wrong in two ways. It may compute both anew, in two loops that round differently,
    and then none is equal: behind BatchNorm gradients lost several percent. And a loop
    that reads a window's other pixels may be fused with ReLU's gradient, which is
    allowed to write over the same map: jaxlib 0.12's were up to 90% off.
    """
    (x,), (tangent,) = primals, tangents
    (a, b), (c, d) = _corners(x)
    upper = jnp.maximum(a, b) >= jnp.maximum(c, d)
    place = jnp.where(upper, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    place = jax.lax.optimization_barrier(place.astype(jnp.int8))
    places = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    is_largest = place[:, :, None, :, None] == places
    chosen = jnp.where(is_largest, _blocks(tangent), jnp.zeros((), tangent.dtype))
    return _block_max(x), chosen.sum(axis=(2, 4))


POOLINGS = {"max": max_pool, "average": average_pool}


def keep_inside(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Zeros beyond each image's own (height, width): `[B, H, W, C]`, `[B, 2]`."""
    rows = jnp.arange(x.shape[1])[None, :] < sizes[:, :1]  # [B, H]
    columns = jnp.arange(x.shape[2])[None, :] < sizes[:, 1:]  # [B, W]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0)


def adaptive_average_pool(x: jax.Array, side: int, sizes: jax.Array) -> jax.Array:
    """torchvision's AdaptiveAvgPool2d(side): `[B, H, W, C]` -> `[B, side, side, C]`.

    Bin i of n pixels is the mean of those from floor(i n / side) up to, and without,
    ceil((i + 1) n / side); n is the image's own height or width in `sizes`, `[B, 2]`.
    """

    def bins(length: int, extents: jax.Array) -> jax.Array:  # [B, side, length]
        i, n = jnp.arange(side)[None, :, None], extents[:, None, None]
        first, last = i * n // side, -(-(i + 1) * n // side)
        place = jnp.arange(length)[None, None, :]
        return ((place >= first) & (place < last)) / (last - first).astype(x.dtype)

    rows, columns = bins(x.shape[1], sizes[:, 0]), bins(x.shape[2], sizes[:, 1])
    return jnp.einsum("bih,bhwc,bjw->bijc", rows, x, columns)


def local_response_normalization(x: jax.Array) -> jax.Array:
    """Krizhevsky et al. 2012, section 3.3: k=2, n=5, alpha=1e-4, beta=0.75.

    The sum of squares runs over 5 neighbouring channels and is not divided by 5.
    """
    squares = jnp.pad(jnp.square(x), ((0, 0), (0, 0), (0, 0), (2, 2)))
    channels = x.shape[-1]
    total = sum(squares[..., i : i + channels] for i in range(5))
    return x / (2 + 1e-4 * total) ** 0.75


def example_dropout(
    x: jax.Array, rate: float, key: jax.Array, example_index: jax.Array
) -> jax.Array:
    """Dropout whose mask for an example depends on its index, not on its place.

    So a batch cut over 1, 2 or 8 devices drops the same units.

    Args:
      x: `[batch, ...]`.
      rate: the share of units set to zero; the others grow by 1 / (1 - rate).
      key: one random key for the batch.
      example_index: `[batch]`, integers, the example's index in the global batch.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index)
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Conv(nn.Module):
    """A convolution, HWIO, stride 1, with its params: see `convolution.convolve`."""

    features: int
    window: int
    padding: str
    use_bias: bool
    kernel_init: Initializer
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H', W', features]`."""
        shape = (self.window, self.window, x.shape[-1], self.features)
        kernel = self._param("kernel", self.kernel_init, shape)
        y = convolution.convolve(x.astype(self.dtype), kernel, self.padding)
        if self.use_bias:
            bias = self._param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.reshape(1, 1, 1, -1)
        return y

    def _param(
        self, name: str, initializer: Initializer, shape: tuple[int, ...]
    ) -> jax.Array:
        """`self.param` in `dtype`; a param that is there is not initialised again.

        Flax traces the initialiser in every call to learn its shape: a third of the
        time that vgg16 takes to trace.
        """
        if not self.has_variable("params", name):
            value = self.param(name, initializer, shape, self.param_dtype)
        else:
            value = self.get_variable("params", name)
            if jnp.shape(value) != shape:
                raise flax.errors.ScopeParamShapeError(
                    name, "/" + "/".join(self.path), jnp.shape(value), shape
                )
        return jnp.asarray(value, self.dtype)
