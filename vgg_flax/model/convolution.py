"""How a convolution is computed: by XLA, or as one matmul where XLA is slow."""

import functools
import math

import jax
import jax.numpy as jnp

# On CPU XLA's convolution of a 2x2 map, which is stage 5 of every net at 32 pixels,
# takes up to 80 times as long as a matmul of its columns, at 1x1 ten times; from 3x3
# on it is as fast or faster (measured with jax 0.10.2 and 0.12.0.1).
_TINY = 2


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
        y = x.reshape(x.shape[0], flat) @ kernel.reshape(flat, -1)
        return y[:, None, None, :]  # [B, 1, 1, out]
    direct = functools.partial(_direct, padding=padding)
    if padding == "SAME" and max(x.shape[1:3]) <= _TINY:
        return jax.lax.platform_dependent(x, kernel, cpu=_by_columns, default=direct)
    return direct(x, kernel)


def _direct(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _by_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Padded: a matmul of what each window sees, `[B, H, W, h w in]`."""
    height, width = x.shape[1:3]
    rows, columns = kernel.shape[:2]
    around = ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0))
    padded = jnp.pad(x, around)
    seen = [
        padded[:, i : i + height, j : j + width]
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
