"""Convolutions as CPUs get them against XLA's own, under JAX's transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_flax.model import convolution

# Batch, height, width, in, out, the kernel's sides, padding: blocks of several images,
# of an image's rows, with a rest; even and odd maps; conv1_1, vgg16_1x1's, fc6 sliding.
SHAPES = {
    "a rest of images": (5, 8, 8, 64, 32, 3, "SAME"),
    "blocks of rows": (2, 34, 32, 96, 8, 3, "SAME"),
    "images": (3, 13, 40, 3, 8, 3, "SAME"),
    "1x1": (3, 14, 14, 3, 2, 1, "SAME"),
    "sliding": (2, 9, 12, 2, 3, 7, "VALID"),
    "a row": (1, 1, 30, 2, 3, 3, "SAME"),
    "tiny": (3, 2, 2, 4, 4, 3, "SAME"),
}


def plain(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def operands(name: str, dtype: str, more: int = 0) -> tuple[jax.Array, jax.Array, str]:
    batch, height, width, inputs, outputs, side, padding = SHAPES[name]
    x = draw((more,) * bool(more) + (batch, height, width, inputs), dtype, 1)
    kernel = draw((more,) * bool(more) + (side, side, inputs, outputs), dtype, 2)
    return x, kernel, padding


def assert_close(ours: Any, expected: Any, bound: float) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert jnp.abs(a - b).max() <= bound * jnp.abs(b).max()


def both(
    transform: Callable[[Callable[..., jax.Array]], Callable[..., Any]],
    padding: str,
    *arguments: jax.Array,
) -> tuple[Any, Any]:
    """What `transform` makes of our convolution's function, and of XLA's."""

    def of(convolve: Callable[..., jax.Array]) -> Any:
        function = transform(lambda x, kernel: jnp.tanh(convolve(x, kernel, padding)))
        return jax.jit(function)(*arguments)

    return of(convolution.convolve), of(plain)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_it_and_its_gradients_are_xlas(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        x, kernel, padding = operands(name, dtype)
        g = draw(plain(x, kernel, padding).shape, dtype, 3)

        def pulled(function: Callable[..., jax.Array]) -> Callable[..., Any]:
            return lambda *arguments: (
                function(*arguments),
                jax.vjp(function, *arguments)[1](g),
            )

        ours, expected = both(pulled, padding, x, kernel)
        assert_close(ours, expected, 1e-12 if dtype == "float64" else 1e-4)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jvp": lambda f: lambda x, k: jax.jvp(f, (x, k), (k.sum() * x, x.sum() * k)),
    "jacfwd": lambda f: jax.jacfwd(lambda x, k: f(x, k).sum((0, 1, 2)), (0, 1)),
    "jacrev": lambda f: jax.jacrev(lambda x, k: f(x, k).sum((0, 1, 2)), (0, 1)),
    "second derivatives": lambda f: (
        lambda x, k: jax.jvp(
            jax.grad(lambda x, k: f(x, k).sum(), (0, 1)), (x, k), (x, k)
        )
    ),
    "remat": lambda f: jax.grad(jax.checkpoint(lambda x, k: f(x, k).sum()), (0, 1)),
}


@pytest.mark.parametrize("name", ["1x1", "sliding"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformations_apply(transform: str, name: str) -> None:
    with jax.enable_x64(True):
        x, kernel, padding = operands(name, "float64")
        assert_close(*both(TRANSFORMS[transform], padding, x, kernel), 1e-12)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_applies(axes: tuple[int | None, int | None]) -> None:
    """Over images, over kernels (an ensemble), over both; of the gradient too."""
    with jax.enable_x64(True):
        x, kernel, padding = operands("images", "float64", more=2)
        x, kernel = (
            a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)
        )

        def mapped(function: Callable[..., jax.Array]) -> Callable[..., Any]:
            total = jax.grad(lambda x, k: function(x, k).sum(), (0, 1))
            return jax.vmap(total, axes)

        assert_close(*both(mapped, padding, x, kernel), 1e-12)


def test_bfloat16_is_xlas_own() -> None:
    """A sum over blocks in bfloat16 would lose what one matmul keeps."""
    x, kernel, padding = operands("a rest of images", "bfloat16")
    gradient = lambda f: jax.grad(lambda x, k: f(x, k).sum(), (0, 1))  # noqa: E731
    assert_close(*both(gradient, padding, x, kernel), 0)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", ["images", "1x1", "sliding", "tiny"])
def test_other_platforms_get_the_plain_convolution(platform: str, name: str) -> None:
    """Three convolutions for the two gradients and the result, and no loop."""
    x, kernel, padding = operands(name, "float32")

    def lowered(convolve: Callable[..., jax.Array]) -> dict[str, int]:
        total = lambda x, k: jnp.tanh(convolve(x, k, padding)).sum()  # noqa: E731
        step = jax.jit(jax.value_and_grad(total, (0, 1))).trace(x, kernel)
        text = step.lower(lowering_platforms=(platform,)).as_text()
        found = ("convolution(", "while", "dot_general", "concatenate")
        return {what: text.count(f"stablehlo.{what}") for what in found}

    assert lowered(convolution.convolve) == lowered(plain)
