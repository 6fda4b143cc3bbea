"""How a convolution is computed: by XLA, or as matmuls where XLA is slow on CPUs."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from vgg_flax.model import ordering, winograd

# On CPU XLA's convolution of a 2x2 map, which is stage 5 of every net at 32 pixels,
# takes up to 80 times as long as a matmul of its columns, at 1x1 ten times.
_TINY = 2
# Of fc6's windows over a larger map, as in dense evaluation, it takes 1.5 to 8 times as
# long. Elements of the columns: half a gigabyte in float32, and as much again while
# they are put together.
MANY_COLUMNS = 1 << 27
# With fewer multiply-adds XLA's own is soon done too, and sooner compiled: the default
# recipe's layers.
FEW_PRODUCTS = 1 << 28
# With fewer channels Winograd's transforms cost what it saves (conv1_1).
_FEW_CHANNELS = 16


class _Window(NamedTuple):
    """What the shapes of two of a convolution's three arrays do not tell."""

    padding: str  # "SAME" or "VALID"
    maps: tuple[int, ...]  # height, width
    sides: tuple[int, ...]  # the kernel's

    @property
    def positions(self) -> tuple[int, ...]:
        if self.padding == "SAME":
            return self.maps
        return self.maps[0] - self.sides[0] + 1, self.maps[1] - self.sides[1] + 1


def convolve(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """A convolution of stride 1.

    Args:
      x: `[B, H, W, in]`.
      kernel: HWIO, `[h, w, in, out]`, of x's dtype; odd sides, if padded.
      padding: "SAME" or "VALID".

    Returns:
      `[B, H', W', out]`.
    """
    window = _Window(padding, x.shape[1:3], kernel.shape[:2])
    if padding == "VALID" and window.maps == window.sides:  # one position
        flat = math.prod(kernel.shape[:3])
        y = ordering.settled(x.reshape(x.shape[0], flat) @ kernel.reshape(flat, -1))
        return y[:, None, None, :]  # [B, 1, 1, out]
    # Of an explicit mesh is XLA's own: that has rules for it.
    is_cut = any(jax.typeof(x).sharding.spec)
    way = _direct if is_cut else _way(x.dtype, x.shape[0], kernel.shape[2:], window)
    if way is _direct:
        return _direct(x, kernel, padding)
    return _bind(_convolution, x, kernel, window)


def _direct(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _by_columns(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """A matmul of what each window sees, `[B, H', W', h w in]`."""
    rows, columns = kernel.shape[:2]
    if padding == "SAME":
        around = [(rows // 2, rows // 2), (columns // 2, columns // 2)]
        x = jnp.pad(x, [(0, 0), *around, (0, 0)])
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    seen = [
        x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)
    ]
    flat = jnp.concatenate(seen, axis=-1)
    return ordering.settled(flat @ kernel.reshape(-1, kernel.shape[-1]))


def _by_winograd(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    assert padding == "SAME"
    return winograd.convolve(x, kernel)


_Way = Callable[[jax.Array, jax.Array, str], jax.Array]


def _way(
    dtype: jnp.dtype, batch: int, channels: tuple[int, ...], window: _Window
) -> _Way:
    """How a CPU computes it; `channels` are the kernel's, in and out.

    What an export leaves open, so that nobody knows how much there is to do, is XLA's
    own, but for a batch of tiny maps.
    """
    if not all(isinstance(size, int) for size in (*channels, *window.maps)):
        return _direct
    if window.padding == "SAME" and max(window.maps) <= _TINY:
        return _by_columns
    positions = math.prod(window.positions)
    if not isinstance(batch, int) or min(batch, *window.positions, *channels) <= 0:
        return _direct
    if window.padding == "VALID":
        elements = batch * positions * math.prod(window.sides) * channels[0]
        return _by_columns if elements <= MANY_COLUMNS else _direct
    # In fewer bits than float32 the transforms would lose what one matmul keeps.
    if window.sides != (3, 3) or dtype not in (jnp.float32, jnp.float64):
        return _direct
    is_much = batch * positions * 9 * math.prod(channels) >= FEW_PRODUCTS
    return _by_winograd if is_much and min(channels) >= _FEW_CHANNELS else _direct


# As primitives of JAX: only a primitive may say how it is transposed and keep forward
# mode and `vmap`, and only its lowering knows for which platform, and how many images
# `vmap` made of one. Each is linear in both of its operands, and what the other two are
# transposed to:
_convolution = Primitive("convolution")  # x, kernel -> y
_by_images = Primitive("convolution_by_images")  # y, kernel -> x, as a cotangent
_by_kernel = Primitive("convolution_by_kernel")  # x, y -> kernel, as a cotangent


def _bind(
    primitive: Primitive, a: jax.Array, b: jax.Array, window: _Window
) -> jax.Array:
    # Within `shard_map` both are to vary over the same axes, as JAX's own operands do.
    over_a, over_b = (jax.typeof(v).manual_axis_type.varying for v in (a, b))
    if over_b - over_a:
        a = jax.lax.pcast(a, tuple(over_b - over_a), to="varying")
    if over_a - over_b:
        b = jax.lax.pcast(b, tuple(over_a - over_b), to="varying")
    return primitive.bind(a, b, window=window)


def _turned(kernel: jax.Array) -> jax.Array:
    """The kernel that takes a cotangent back to the images."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _y_of(way: _Way, x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    return way(x, kernel, window.padding)


def _x_of(way: _Way, y: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    # A convolution too, and twice as fast as what JAX would derive.
    if way is _by_winograd:
        return winograd.convolve(y, _turned(kernel))
    x = jax.typeof(y).update(shape=_x_shape(y, kernel, window))
    return jax.linear_transpose(lambda x: way(x, kernel, window.padding), x)(y)[0]


def _kernel_of(way: _Way, x: jax.Array, y: jax.Array, window: _Window) -> jax.Array:
    if way is _by_winograd:
        return winograd.correlate(x, y)
    kernel = jax.typeof(x).update(shape=_kernel_shape(x, y, window))
    return jax.linear_transpose(lambda k: way(x, k, window.padding), kernel)(y)[0]


def _y_shape(x: jax.Array, kernel: jax.Array, window: _Window) -> tuple[int, ...]:
    return x.shape[0], *window.positions, kernel.shape[3]


def _x_shape(y: jax.Array, kernel: jax.Array, window: _Window) -> tuple[int, ...]:
    return y.shape[0], *window.maps, kernel.shape[2]


def _kernel_shape(x: jax.Array, y: jax.Array, window: _Window) -> tuple[int, ...]:
    return *window.sides, x.shape[3], y.shape[3]


def _define(
    primitive: Primitive,
    shape: Callable[..., tuple[int, ...]],
    function: Callable[..., jax.Array],
    channels: Callable[..., tuple[int, ...]],
) -> None:
    """All that JAX asks of a primitive, but for its derivatives.

    Args:
      shape: of two operands and a window, that of the result.
      function: of a way, two operands and a window, the result.
      channels: of two operands, the kernel's.
    """

    def of_each(
        operands: tuple[jax.Array, jax.Array],
        axes: tuple[int | None, int | None],
        window: _Window,
    ) -> tuple[jax.Array, int]:
        mapped = [axis is not None for axis in axes]
        a, b = (
            operand if axis is None else jnp.moveaxis(operand, axis, 0)
            for operand, axis in zip(operands, axes, strict=True)
        )
        if primitive is not _by_kernel and mapped == [True, False]:
            flat = a.reshape(-1, *a.shape[2:])
            y = _bind(primitive, flat, b, window)
            return y.reshape(*a.shape[:2], *y.shape[1:]), 0

        # Several kernels, or gradients by them: as XLA has it, or one by one.

        def one_by_one(*operands: jax.Array) -> jax.Array:
            def one(index: jax.Array) -> jax.Array:
                parts = zip(operands, mapped, strict=True)
                a, b = (v[index] if m else v for v, m in parts)
                return _bind(primitive, a, b, window)

            return jax.lax.map(one, jnp.arange(len(operands[mapped.index(True)])))

        together = jax.vmap(
            lambda a, b: function(_direct, a, b, window),
            tuple(0 if m else None for m in mapped),
        )
        if 0 in (*a.shape, *b.shape):
            return together(a, b), 0
        return jax.lax.platform_dependent(a, b, cpu=one_by_one, default=together), 0

    def on_cpu(a: jax.Array, b: jax.Array, window: _Window) -> jax.Array:
        way = _way(a.dtype, a.shape[0], channels(a, b), window)
        return function(way, a, b, window)

    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))
    primitive.def_abstract_eval(
        lambda a, b, window: a.update(shape=shape(a, b, window))
    )
    batching.primitive_batchers[primitive] = of_each
    direct = functools.partial(function, _direct)
    for platform, way in ((None, direct), ("cpu", on_cpu)):
        lowering = mlir.lower_fun(way, multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform=platform)


_define(_convolution, _y_shape, _y_of, lambda x, kernel: kernel.shape[2:])
_define(_by_images, _x_shape, _x_of, lambda y, kernel: kernel.shape[2:])
_define(_by_kernel, _kernel_shape, _kernel_of, lambda x, y: (x.shape[3], y.shape[3]))
ad.defbilinear(
    _convolution,
    lambda y, x, kernel, window: _bind(_by_images, y, kernel, window),
    lambda y, x, kernel, window: _bind(_by_kernel, x, y, window),
)
ad.defbilinear(
    _by_images,
    lambda x, y, kernel, window: _bind(_convolution, x, kernel, window),
    lambda x, y, kernel, window: _bind(_by_kernel, x, y, window),
)
ad.defbilinear(
    _by_kernel,
    lambda kernel, x, y, window: _bind(_by_images, y, kernel, window),
    lambda kernel, x, y, window: _bind(_convolution, x, kernel, window),
)
