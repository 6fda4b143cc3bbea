"""Content, style and total variation against their papers' equations in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
from conftest import random_net

import vgg_flax
from vgg_flax import perceptual

LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu4_2", "relu5_1")


def features(photo: int, side: int = 32, count: int = 1) -> dict[str, jax.Array]:
    """Of `count` crops of a photo, by a small vgg16."""
    net = random_net("vgg16")
    crops = [samples.photos()[photo][i : i + side, i : i + side] for i in range(count)]
    return net.features(np.stack(crops), LAYERS)


def test_content_loss_is_the_mean_square() -> None:
    """Johnson et al. 2016, equation 2."""
    x, target = features(0, count=2), features(1)
    expected = [
        np.square(x["relu4_2"][i] - target["relu4_2"][0]).mean() for i in range(2)
    ]
    found = perceptual.content_loss(x, target)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    two = perceptual.content_loss(x, target, {"relu4_2": 3.0, "relu1_1": 0.5})
    others = np.square(x["relu1_1"] - target["relu1_1"]).mean((1, 2, 3))
    np.testing.assert_allclose(two, 3 * np.array(expected) + 0.5 * others, rtol=1e-5)
    assert perceptual.content_loss(x, x).max() == 0


def test_style_loss_is_gatys_equations() -> None:
    """Equations 3 to 5, of Gram matrices that are sums, of maps of one size."""
    x, target = features(0, count=2), features(1)
    for i in range(2):
        total = 0.0
        for stage in range(1, 6):
            f, p = (np.float64(v[f"relu{stage}_1"]) for v in (x, target))
            f, p = f[i].reshape(-1, f.shape[-1]), p[0].reshape(-1, p.shape[-1])
            positions, channels = f.shape
            difference = f.T @ f - p.T @ p
            total += np.square(difference).sum() / (4 * channels**2 * positions**2) / 5
        found = perceptual.style_loss(x, target)[i]
        assert float(found) == pytest.approx(total, rel=1e-4)


def test_style_does_not_depend_on_size_and_place() -> None:
    """A picture's Gram matrix is that of four times the picture, and of its mirror."""
    x = features(0)["relu1_1"]
    again = jnp.tile(x, (1, 2, 2, 1))[:, :, ::-1]
    a, b = perceptual.gram_matrix(x), perceptual.gram_matrix(again)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.max()))
    np.testing.assert_array_equal(a, a.swapaxes(1, 2))


def test_grams_made_once_are_as_good_as_features() -> None:
    x, target = features(0), features(1, side=48)
    grams = {name: perceptual.gram_matrix(target[name]) for name in perceptual.STYLE}
    np.testing.assert_array_equal(
        perceptual.style_loss(x, grams), perceptual.style_loss(x, target)
    )


@pytest.mark.parametrize("beta", [2.0, 1.0, 3.0])
def test_total_variation_is_mahendrans(beta: float) -> None:
    image = np.float64(samples.photos()[0][:5, :7]) / 255
    expected = 0.0
    for i in range(4):
        for j in range(6):
            right, below = image[i, j + 1] - image[i, j], image[i + 1, j] - image[i, j]
            expected += ((right**2 + below**2) ** (beta / 2)).sum()
    found = perceptual.total_variation(jnp.float32(image)[None], beta)
    assert float(found[0]) == pytest.approx(expected, rel=1e-5)
    flat = jnp.ones((1, 4, 4, 3))
    gradient = jax.grad(lambda x: perceptual.total_variation(x, beta).sum())(flat)
    assert perceptual.total_variation(flat, beta) == 0 and not gradient.any()


def test_they_work_within_a_jitted_step_with_frozen_params() -> None:
    """A step down the style's gradient makes it smaller."""
    net = random_net("vgg11")
    style = net.features(samples.photos()[1][None, :32, :32], tuple(perceptual.STYLE))

    @jax.jit
    def loss_and_gradient(net: Any, image: jax.Array) -> Any:
        def loss(image: jax.Array) -> jax.Array:
            found = net.features(image, tuple(perceptual.STYLE))
            rough = perceptual.total_variation(image)
            return (perceptual.style_loss(found, style) + 1e-9 * rough).sum()

        return jax.value_and_grad(loss)(image)

    image = net.preprocessing.normalize(samples.photos()[0][None, :32, :32])
    before, gradient = loss_and_gradient(net, image)
    step = 0.01 * before / jnp.square(gradient).sum()
    after, _ = loss_and_gradient(net, image - step * gradient)
    assert after < 0.995 * before


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda f: perceptual.content_loss({}, f), "features have .*not 'relu4_2'"),
        (lambda f: perceptual.style_loss(f, {}), "targets have .*not 'relu1_1'"),
        (lambda f: perceptual.style_loss(f, f, {}), "expected a layer or more"),
        (
            lambda f: perceptual.content_loss(f, features(0, side=48)),
            "expected the same shape",
        ),
        (
            lambda f: perceptual.style_loss(
                f, {"relu1_1": f["relu3_1"]}, {"relu1_1": 1.0}
            ),
            "Gram matrix of 4 channels",
        ),
        (lambda f: perceptual.total_variation(jnp.ones((4, 4, 3))), "expected floats"),
        (
            lambda f: perceptual.total_variation(jnp.ones((1, 4, 4, 3), "uint8")),
            "expected floats",
        ),
    ],
)
def test_what_does_not_fit_is_told(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(features(1))


def test_the_room_is_public() -> None:
    assert vgg_flax.perceptual is perceptual
