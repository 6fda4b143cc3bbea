"""How a convolution is computed: by XLA, or as matmuls where XLA is slow on CPUs."""

import functools
import math

import jax
import jax.numpy as jnp

# On CPU XLA's convolution of a 2x2 map, which is stage 5 of every net at 32 pixels,
# takes up to 80 times as long as a matmul of its columns, at 1x1 ten times; from 3x3
# on it is as fast or faster (measured with jax 0.10.2 and 0.12.0.1).
_TINY = 2
# Bytes of columns that a block of the kernel's gradient makes: they are to stay in a
# core's cache until the matmul that follows. 0.5 to 4 MiB are within a fifth.
_BLOCK_BYTES = 1 << 20
# With fewer blocks XLA's own gradient is as fast or faster (the default recipe's).
_FEW_BLOCKS = 8


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
    if padding == "SAME" and max(x.shape[1:3]) <= _TINY:
        direct = functools.partial(_direct, padding=padding)
        return jax.lax.platform_dependent(x, kernel, cpu=_by_columns, default=direct)
    if _makes_many_blocks(x, kernel):
        return _blocked(padding, x, kernel)
    return _direct(x, kernel, padding)


def _makes_many_blocks(x: jax.Array, kernel: jax.Array) -> bool:
    # In fewer bits than float32 the blocks' sum would lose what one matmul keeps.
    if x.dtype not in (jnp.float32, jnp.float64):
        return False
    sizes = (*x.shape[:3], *kernel.shape[:3], x.dtype.itemsize)
    if not all(isinstance(size, int) for size in sizes):  # left open by an export
        return False
    return math.prod(sizes) >= _FEW_BLOCKS * _BLOCK_BYTES


def _direct(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _by_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Padded: a matmul of what each window sees, `[B, H, W, h w in]`."""
    around = [(0, 0), *((side // 2, side // 2) for side in kernel.shape[:2]), (0, 0)]
    columns = _columns(jnp.pad(x, around), kernel.shape)
    return columns @ kernel.reshape(-1, kernel.shape[-1])


def _columns(padded: jax.Array, kernel_shape: tuple[int, ...]) -> jax.Array:
    """What each window sees: `[B, H, W, in]` -> `[B, H - h + 1, W - w + 1, h w in]`."""
    rows, columns = kernel_shape[:2]
    height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    return jnp.concatenate(
        [
            padded[:, i : i + height, j : j + width]
            for i in range(rows)
            for j in range(columns)
        ],
        axis=-1,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _blocked(padding: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution, whose derivative by the kernel is made for CPU caches.

    XLA's gradient of the kernel took more than half of a VGG16 training step on CPUs.
    As a tangent it is linear in the kernel, so every transformation of JAX applies,
    and what JAX derives from it for reverse mode is a scan that adds small matmuls.
    """
    return _direct(x, kernel, padding)


@_blocked.defjvp
def _blocked_jvp(
    padding: str,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    by_kernel = jax.lax.platform_dependent(
        x,
        dkernel,
        cpu=functools.partial(_by_blocks, padding=padding),
        default=functools.partial(_direct, padding=padding),
    )
    return _blocked(padding, x, kernel), _blocked(padding, dx, kernel) + by_kernel


def _by_blocks(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """The same convolution as a scan over blocks of images or of an image's rows.

    Checkpointed: for the transpose x is kept, and neither its columns nor its padding.
    """
    batch, height, width, channels = x.shape
    margins = [side // 2 if padding == "SAME" else 0 for side in kernel.shape[:2]]
    out_height = height + 2 * margins[0] - kernel.shape[0] + 1
    out_width = width + 2 * margins[1] - kernel.shape[1] + 1
    row_bytes = out_width * math.prod(kernel.shape[:3]) * x.dtype.itemsize
    rows = min(out_height, max(1, _BLOCK_BYTES // row_bytes))
    images = min(batch, max(1, _BLOCK_BYTES // (row_bytes * out_height)))
    across, down = -(-batch // images), -(-out_height // rows)
    seen = (images, rows + kernel.shape[0] - 1, width + 2 * margins[1], channels)

    @jax.checkpoint
    def all_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
        last = across * images - batch, down * rows - out_height
        padded = jnp.pad(
            x,
            (
                (0, last[0]),
                (margins[0], margins[0] + last[1]),
                (margins[1], margins[1]),
                (0, 0),
            ),
        )

        @jax.checkpoint
        def block(part: jax.Array, kernel: jax.Array) -> jax.Array:
            return _columns(part, kernel.shape) @ kernel.reshape(-1, kernel.shape[-1])

        def step(_: None, index: jax.Array) -> tuple[None, jax.Array]:
            start = (index // down * images, index % down * rows, 0, 0)
            return None, block(jax.lax.dynamic_slice(padded, start, seen), kernel)

        _, y = jax.lax.scan(step, None, jnp.arange(across * down))
        y = y.reshape(across, down, images, rows, out_width, -1).swapaxes(1, 2)
        return y.reshape(across * images, down * rows, out_width, -1)

    return all_blocks(x, kernel)[:batch, :out_height]
