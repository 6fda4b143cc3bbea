"""A 3x3 convolution by Winograd's F(2x2, 3x3), for CPUs: plain jnp, linear in both.

Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.1:
four outputs of 16 products instead of 36. What is done in one go is a block of images,
or a strip of a large one, so that what its tiles hold stays small.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vgg_flax.model import ordering

# What a block's tiles hold before and after the products. From a quarter to twice of it
# times are within a fifth; one image of 224 pixels and 64 channels alone has 100 MiB.
BLOCK_BYTES = 32 << 20
STRIP_BYTES = 128 << 20  # an image with more is cut into strips


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The padded convolution.

    Args:
      x: `[B, H, W, in]`.
      kernel: `[3, 3, in, out]`.

    Returns:
      `[B, H, W, out]`.
    """
    blocks = _Blocks.of(x, kernel.shape[3])
    # Or the matrices of all layers, twice the kernels, would be made to begin with.
    matrices = _matrices(ordering.after(x[0, 0, 0, 0], kernel))
    if blocks.count == 1:
        return _block(x, matrices, padded=True)
    whole = blocks.framed(x)

    def put(number: jax.Array, y: jax.Array) -> jax.Array:
        part = _block(blocks.seen(whole, number), matrices, padded=blocks.strips == 1)
        return jax.lax.dynamic_update_slice(y, part, blocks.start(number))

    shape = (*blocks.shape, x.shape[2], kernel.shape[3])
    # All of it is written. Zeros XLA would make once for all layers, keep throughout
    # and copy for each; what is filled with a pixel of x is made where it is needed.
    y = jnp.full(shape, x[0, 0, 0, 0])
    y = jax.lax.fori_loop(0, blocks.count, put, y)
    return y[: x.shape[0], : x.shape[1]]


def correlate(x: jax.Array, y: jax.Array) -> jax.Array:
    """The kernel's cotangent of the padded convolution.

    Args:
      x: `[B, H, W, in]`.
      y: `[B, H, W, out]`, the cotangent of what came out.

    Returns:
      `[3, 3, in, out]`.
    """
    blocks = _Blocks.of(x, y.shape[3])
    whole, y = blocks.framed(x), blocks.filled(y)
    # Of x's type, which tells what it varies over within `shard_map`.
    kernel = jax.typeof(x).update(shape=(3, 3, x.shape[3], y.shape[3]))

    def by_matrices(number: Any) -> Any:
        part = blocks.seen(whole, number)
        block = functools.partial(_block, part, padded=blocks.strips == 1)
        sizes = (*blocks.size, *y.shape[2:])
        of_part = jax.lax.dynamic_slice(y, blocks.start(number), sizes)
        (total,) = jax.linear_transpose(block, jax.eval_shape(_matrices, kernel))(
            of_part
        )
        return total

    total = by_matrices(0)
    if blocks.count > 1:
        total = jax.lax.fori_loop(
            1,
            blocks.count,
            lambda number, total: jax.tree.map(jnp.add, total, by_matrices(number)),
            total,
        )
    return jax.linear_transpose(_matrices, kernel)(total)[0]


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How `[B, H, W, C]` is cut: into groups of whole images, or images into strips.

    Attributes:
      size: images and rows of a block's output.
      strips: how many an image is cut into.
      count: of all blocks.
    """

    size: tuple[int, int]
    strips: int
    count: int

    @classmethod
    def of(cls, x: jax.Array, features: int) -> "_Blocks":
        batch, height, width, channels = x.shape
        tile_rows = -(-height // 2)
        row_bytes = 16 * -(-width // 2) * (channels + features) * x.dtype.itemsize
        rows = min(tile_rows, max(1, STRIP_BYTES // row_bytes))
        strips = -(-tile_rows // rows)
        if strips > 1:
            rows = -(-tile_rows // strips)
            return cls((1, 2 * rows), strips, batch * strips)
        most = max(1, BLOCK_BYTES // (row_bytes * rows))
        most = 1 << (most.bit_length() - 1)  # as batches are of powers of two
        groups = -(-batch // most)
        return cls((-(-batch // groups), height), 1, groups)

    @property
    def shape(self) -> tuple[int, int]:
        """Images and rows of all of them."""
        return self.count // self.strips * self.size[0], self.strips * self.size[1]

    def start(self, number: Any) -> tuple[Any, Any, int, int]:
        """Where a block begins."""
        images, rows = self.size
        return number // self.strips * images, number % self.strips * rows, 0, 0

    def filled(self, x: jax.Array, above: int = 0) -> jax.Array:
        """With zeros where the last blocks are not full, and rows above and below."""
        images, rows = self.shape
        around = (0, images - x.shape[0]), (above, above + rows - x.shape[1])
        return jnp.pad(x, (*around, (0, 0), (0, 0))) if any(map(any, around)) else x

    def framed(self, x: jax.Array) -> jax.Array:
        """What `seen` takes parts of: strips see a row above and one below."""
        return self.filled(x, above=int(self.strips > 1))

    def seen(self, x: jax.Array, number: Any) -> jax.Array:
        """The pixels that a block's output is of."""
        images, rows = self.size
        sizes = (images, rows + 2 * (self.strips > 1), *x.shape[2:])
        return jax.lax.dynamic_slice(x, self.start(number), sizes)


def _matrices(kernel: jax.Array) -> Any:
    """`[3, 3, in, out]` -> four by four of `[in, out]`."""
    return _in_two_directions(_transformed_kernel, kernel)


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
