"""Max-pooling's gradient: to one pixel a window, also where XLA computes it anew."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_net

from vgg_flax.model import layers


def one_pixel_a_window(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The gradient by loops; the first of equals, row by row, takes it."""
    expected = np.zeros_like(x)
    for b, h, w, c in np.ndindex(g.shape):
        window = x[b, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2, c]
        i, j = np.unravel_index(np.argmax(window), (2, 2))
        expected[b, 2 * h + i, 2 * w + j, c] = g[b, h, w, c]
    return expected


@pytest.mark.parametrize("side", [4, 5])
def test_the_gradient_goes_to_the_first_of_the_largest(side: int) -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 3, (2, side, side, 3)).astype(np.float32)  # many ties
    g = random.normal(size=(2, 2, 2, 3)).astype(np.float32)
    y, pullback = jax.vjp(layers.max_pool, x)
    np.testing.assert_array_equal(y, x[:, :4, :4].reshape(2, 2, 2, 2, 2, 3).max((2, 4)))
    np.testing.assert_array_equal(pullback(g)[0], one_pixel_a_window(x, g))
    assert (
        jax.grad(
            lambda x: jax.grad(lambda x: (layers.max_pool(x) ** 2).sum())(x)[0, 0, 0, 0]
        )(jnp.asarray(x)).shape
        == x.shape
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_compiled_gradient_behind_relu_goes_to_the_first_of_the_largest(
    dtype: type,
) -> None:
    """XLA on CPU may compute ReLU's gradient in place, while the pool's still reads."""
    random = np.random.default_rng(0)
    x = random.normal(size=(8, 4, 4, 32)).astype(dtype)
    g = random.normal(size=(8, 2, 2, 32)).astype(dtype)

    def pooled(x: jax.Array) -> jax.Array:
        return (layers.max_pool(layers.relu(x)) * g).sum()

    with jax.enable_x64(dtype == np.float64):
        gradient = np.asarray(jax.jit(jax.grad(pooled))(jnp.asarray(x)))
    assert gradient.dtype == dtype
    expected = np.where(x > 0, one_pixel_a_window(np.maximum(x, 0), g), 0)
    np.testing.assert_array_equal(gradient, expected)


def test_a_compiled_gradient_behind_batch_norm_is_the_gradient() -> None:
    """XLA normalises again where it looks for the largest, and rounds otherwise."""
    with jax.enable_x64(True):
        net = random_net("vgg11_bn", in_channels=1, dtype="float64")
        params = net.variables["params"]
        images = np.random.default_rng(0).normal(size=(24, 32, 32, 1))

        @jax.jit
        def loss(params: Any) -> jax.Array:
            logits, _ = net.model.apply(
                {**net.variables, "params": params},
                images,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return -jax.nn.log_softmax(logits)[:, 3].sum()

        gradient = jax.device_get(jax.jit(jax.grad(loss))(params))
        length = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))

        def along(step: float) -> jax.Array:
            moved = jax.tree.map(lambda w, g: w + step * g / length, params, gradient)
            return loss(moved)

        slope = (along(1e-6) - along(-1e-6)) / 2e-6
    np.testing.assert_allclose(slope, length, rtol=1e-6)
