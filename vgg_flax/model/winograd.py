"""A 3x3 convolution by Winograd's F(2x2, 3x3), for CPUs: plain jnp, linear in both.

Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.1:
four outputs of 16 products instead of 36. What is done in one go is a block of images,
or a strip of a large one, so that what its tiles hold stays small.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# What a block's tiles hold before and after the products. From a quarter to twice of it
# times are within a fifth; one image of 224 pixels and 64 channels alone has 100 MiB.
_BLOCK_BYTES = 32 << 20
_STRIP_BYTES = 128 << 20  # an image with more is cut into strips


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The padded convolution.

    Args:
      x: `[B, H, W, in]`.
      kernel: `[3, 3, in, out]`.

    Returns:
      `[B, H, W, out]`.
    """
    batch, height, width, _ = x.shape
    tile_rows = -(-height // 2)
    row_bytes = 16 * -(-width // 2) * sum(kernel.shape[2:]) * x.dtype.itemsize
    rows = min(tile_rows, max(1, _STRIP_BYTES // row_bytes))
    strips = -(-tile_rows // rows)
    if strips > 1:  # images then, with a row more above and below
        below = 1 + 2 * rows * strips - height
        x = jnp.pad(x, ((0, 0), (1, below), (0, 0), (0, 0)))
        starts = range(0, 2 * rows * strips, 2 * rows)
        x = jnp.stack([x[:, at : at + 2 * rows + 2] for at in starts], 1)
        x = x.reshape(batch * strips, *x.shape[2:])
    matrices = _in_two_directions(_transformed_kernel, kernel)

    @jax.checkpoint  # x is kept for the transpose, and none of its tiles
    def block(x: jax.Array, matrices: Any) -> jax.Array:
        return _block(x, matrices, padded=strips == 1)

    most = max(1, _BLOCK_BYTES // (row_bytes * rows))
    y = _in_blocks(lambda part: block(part, matrices), x, most)
    if strips > 1:
        y = y.reshape(batch, 2 * rows * strips, *y.shape[2:])[:, :height]
    return y


def _in_blocks(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, most: int
) -> jax.Array:
    """Of equally many images, at most `most`, at a time; in one go without a loop."""
    most = 1 << (most.bit_length() - 1)  # as batches are multiples of powers of two
    batch = len(x)
    blocks = -(-batch // most)
    if blocks == 1:
        return function(x)
    images = -(-batch // blocks)
    x = jnp.pad(x, ((0, blocks * images - batch), (0, 0), (0, 0), (0, 0)))
    y = jax.lax.map(function, x.reshape(blocks, images, *x.shape[1:]))
    return y.reshape(blocks * images, *y.shape[2:])[:batch]


def _block(x: jax.Array, matrices: Any, *, padded: bool) -> jax.Array:
    """Tiles of 4x4 pixels, two apart, to tiles of 2x2.

    Args:
      x: `[images, rows, width, in]`. Its width is padded here; its height, if `padded`:
        else its first and last row are what the others see.
      matrices: four by four of `[in, out]`.

    Returns:
      `[images, rows, width, out]`, of strips two rows less.
    """
    images, height, width, channels = x.shape
    height -= 0 if padded else 2
    down, across = -(-height // 2), -(-width // 2)
    above = (1, 1 + 2 * down - height) if padded else (0, 0)
    x = jnp.pad(x, ((0, 0), above, (1, 1 + 2 * across - width), (0, 0)))
    pixels = [
        [x[:, i : i + 2 * down - 1 : 2, j : j + 2 * across - 1 : 2] for j in range(4)]
        for i in range(4)
    ]
    tiles = _in_two_directions(_transformed_pixels, pixels)
    products = [
        [tile.reshape(-1, channels) @ matrix for tile, matrix in zip(*row, strict=True)]
        for row in zip(tiles, matrices, strict=True)
    ]
    outputs = _in_two_directions(_transformed_products, products)
    whole = (images, down, 2 * across, outputs[0][0].shape[-1])
    rows = [jnp.stack(row, 1).reshape(whole) for row in outputs]
    y = jnp.stack(rows, 2).reshape(images, 2 * down, *whole[2:])
    return y[:, :height, :width]


def _in_two_directions(transform: Callable[..., Any], parts: Any) -> list[Sequence]:
    """Of the columns of a square of arrays, then of the rows of what that gives."""
    columns = [transform(*(row[i] for row in parts)) for i in range(len(parts[0]))]
    return [transform(*row) for row in zip(*columns, strict=True)]


def _transformed_pixels(a: Any, b: Any, c: Any, d: Any) -> Sequence:
    return a - c, b + c, c - b, b - d


def _transformed_kernel(a: Any, b: Any, c: Any) -> Sequence:
    half = (a + c) / 2
    return a, half + b / 2, half - b / 2, c


def _transformed_products(a: Any, b: Any, c: Any, d: Any) -> Sequence:
    return a + b + c, b - c - d
