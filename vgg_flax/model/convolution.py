"""How a convolution is computed: by XLA, or as matmuls where XLA is slow on CPUs."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from vgg_flax.model import ordering, winograd

# On CPU XLA's convolution of a 2x2 map, which is stage 5 of every net at 32 pixels,
# takes up to 80 times as long as a matmul of its columns, at 1x1 ten times.
_TINY = 2
# Of fc6's windows over a larger map, as in dense evaluation, it takes 1.5 to 8 times as
# long. Elements of the columns, half a gigabyte in float32.
MANY_COLUMNS = 1 << 27
# With fewer multiply-adds XLA's own is soon done too, and sooner compiled: the default
# recipe's layers.
FEW_PRODUCTS = 1 << 28
# With fewer channels Winograd's transforms cost what it saves (conv1_1).
_FEW_CHANNELS = 16


def convolve(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """A convolution of stride 1.

    Args:
      x: `[B, H, W, in]`.
      kernel: HWIO, `[h, w, in, out]`, of x's dtype; odd sides, if padded.
      padding: "SAME" or "VALID".

    Returns:
      `[B, H', W', out]`.
    """
    if padding == "VALID" and x.shape[1:3] == kernel.shape[:2]:  # one position
        flat = math.prod(kernel.shape[:3])
        y = ordering.settled(x.reshape(x.shape[0], flat) @ kernel.reshape(flat, -1))
        return y[:, None, None, :]  # [B, 1, 1, out]
    if _is_for_columns(x, kernel, padding):
        columns = functools.partial(_by_columns, padding=padding)
        direct = functools.partial(_direct, padding=padding)
        return jax.lax.platform_dependent(x, kernel, cpu=columns, default=direct)
    if padding == "SAME" and _is_for_winograd(x, kernel):
        return _bind(_convolution, x, kernel)
    return _direct(x, kernel, padding)


def _is_for_columns(x: jax.Array, kernel: jax.Array, padding: str) -> bool:
    if padding == "SAME":
        return max(x.shape[1:3]) <= _TINY
    if not _is_plain(x, kernel):
        return False
    (height, width), (rows, columns) = x.shape[1:3], kernel.shape[:2]
    positions = x.shape[0] * (height - rows + 1) * (width - columns + 1)
    return positions * math.prod(kernel.shape[:3]) <= MANY_COLUMNS


def _is_for_winograd(x: jax.Array, kernel: jax.Array) -> bool:
    # In fewer bits than float32 the transforms would lose what one matmul keeps.
    if kernel.shape[:2] != (3, 3) or x.dtype not in (jnp.float32, jnp.float64):
        return False
    if not _is_plain(x, kernel):
        return False
    products = math.prod(x.shape[:3]) * math.prod(kernel.shape)
    return products >= FEW_PRODUCTS and min(kernel.shape[2:]) >= _FEW_CHANNELS


def _is_plain(x: jax.Array, kernel: jax.Array) -> bool:
    """No size is left open by an export, nor x of an explicit mesh: XLA's has rules."""
    sizes = (*x.shape, *kernel.shape)
    is_cut = any(jax.typeof(x).sharding.spec)
    return not is_cut and all(isinstance(size, int) for size in sizes)


def _direct(x: jax.Array, kernel: jax.Array, padding: str = "SAME") -> jax.Array:
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


# Winograd's on CPUs and XLA's elsewhere, as primitives of JAX: only a primitive may say
# how it is transposed and keep forward mode and `vmap`. The gradient by the images is
# a convolution too, twice as fast as what JAX would derive. Both are linear in each of
# their operands, and are each other's transposes:
_convolution = Primitive("convolution_3x3")  # x, kernel -> y, padded
_correlation = Primitive("correlation_3x3")  # x, y's cotangent -> the kernel's


def _bind(primitive: Primitive, a: jax.Array, b: jax.Array) -> jax.Array:
    # Within `shard_map` both are to vary over the same axes, as JAX's own operands do.
    over_a, over_b = (jax.typeof(v).manual_axis_type.varying for v in (a, b))
    if over_b - over_a:
        a = jax.lax.pcast(a, tuple(over_b - over_a), to="varying")
    if over_a - over_b:
        b = jax.lax.pcast(b, tuple(over_a - over_b), to="varying")
    return primitive.bind(a, b)


def _turned(kernel: jax.Array) -> jax.Array:
    """The kernel that takes a cotangent back to the images."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _direct_by_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    kernel = jax.typeof(x).update(shape=(3, 3, x.shape[3], y.shape[3]))
    return jax.linear_transpose(functools.partial(_direct, x), kernel)(y)[0]


def _define(
    primitive: Primitive,
    shape: Callable[..., tuple[int, ...]],
    by_winograd: Callable[..., jax.Array],
    direct: Callable[..., jax.Array],
) -> None:
    """All that JAX asks of a primitive, but for its derivatives."""

    def of_each(
        operands: tuple[jax.Array, jax.Array], axes: tuple[int | None, int | None]
    ) -> tuple[jax.Array, int]:
        mapped = [axis is not None for axis in axes]
        a, b = (
            operand if axis is None else jnp.moveaxis(operand, axis, 0)
            for operand, axis in zip(operands, axes, strict=True)
        )
        if primitive is _convolution and mapped == [True, False]:
            y = _bind(primitive, a.reshape(-1, *a.shape[2:]), b)
            return y.reshape(*a.shape[:2], *y.shape[1:]), 0

        # Several kernels, or gradients by them: as XLA has it, or one by one.

        def one_by_one(*operands: jax.Array) -> jax.Array:
            def one(index: jax.Array) -> jax.Array:
                parts = zip(operands, mapped, strict=True)
                return _bind(primitive, *(v[index] if m else v for v, m in parts))

            return jax.lax.map(one, jnp.arange(len(operands[mapped.index(True)])))

        together = jax.vmap(direct, tuple(0 if m else None for m in mapped))
        return jax.lax.platform_dependent(a, b, cpu=one_by_one, default=together), 0

    primitive.def_impl(jax.jit(primitive.bind))
    primitive.def_abstract_eval(lambda a, b: a.update(shape=shape(a, b)))
    batching.primitive_batchers[primitive] = of_each
    for platform, function in ((None, direct), ("cpu", by_winograd)):
        lowering = mlir.lower_fun(function, multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform=platform)


_define(
    _convolution,
    lambda x, kernel: (*x.shape[:3], kernel.shape[3]),
    winograd.convolve,
    _direct,
)
_define(
    _correlation,
    lambda x, y: (3, 3, x.shape[3], y.shape[3]),
    winograd.correlate,
    _direct_by_kernel,
)
ad.defbilinear(
    _convolution,
    lambda y, x, kernel: _bind(_convolution, y, _turned(kernel)),
    lambda y, x, kernel: _bind(_correlation, x, y),
)
ad.defbilinear(
    _correlation,
    lambda kernel, x, y: _bind(_convolution, y, _turned(kernel)),
    lambda kernel, x, y: _bind(_convolution, x, kernel),
)
