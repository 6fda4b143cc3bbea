"""LPIPS against its own equation in NumPy; `test_parity` has the package itself."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
from conftest import random_net

from vgg_flax.net import Net
from vgg_flax.perceptual import lpips
from vgg_flax.weights.lineages import layouts

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


@pytest.fixture(scope="module")
def net() -> Net:
    """A random vgg16 of full width, without a head, of torchvision's pixels."""
    made = random_net("vgg16", width_multiplier=1, head="none")
    return made.replace(preprocessing=layouts.TORCHVISION)


def photos(side: int = 32) -> np.ndarray:
    """Three crops, uint8."""
    temple, flower = samples.photos()
    crops = temple[:side, :side], flower[:side, :side], temple[90 : 90 + side, -side:]
    return np.stack(crops)


def signed(images: np.ndarray) -> jax.Array:
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def by_hand(net: Net, a: np.ndarray, b: np.ndarray, weights: Any) -> np.ndarray:
    """Equation 1 of the paper, in float64, of uint8 images."""
    shift, scale = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
    maps = [
        net.features(jnp.float32((np.float64(x) / 127.5 - 1 - shift) / scale), LAYERS)
        for x in (a, b)
    ]
    total = np.zeros(len(a))
    for name in LAYERS:
        one, other = (np.float64(m[name]) for m in maps)
        one, other = (
            x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
            for x in (one, other)
        )
        total += ((one - other) ** 2 * weights[name]).sum(-1).mean((1, 2))
    return total


def published_weights() -> dict[str, np.ndarray]:
    import pathlib

    import vgg_flax.perceptual as room

    with np.load(pathlib.Path(room.__file__).parent / "lpips_vgg.npz") as file:
        return {name: file[name] for name in file}


def test_the_linear_weights_are_the_published_ones() -> None:
    """1,472 numbers, none negative; sums as the package 0.1.4 has them."""
    weights = published_weights()
    assert [w.size for w in weights.values()] == [64, 128, 256, 512, 512]
    assert min(w.min() for w in weights.values()) > 0
    assert float(weights["relu1_2"].max()) == 1.2828161716461182
    assert float(weights["relu5_3"].min()) == 0.019278833642601967


def test_it_is_the_papers_equation(net: Net) -> None:
    a, b = photos(), np.roll(photos(), 1, axis=0)
    expected = by_hand(net, a, b, published_weights())
    assert expected.min() > 0.01
    np.testing.assert_allclose(lpips(net, a, b), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(lpips(net, b, a), expected, rtol=1e-4, atol=1e-6)


# One program for most tests: `net` and both pictures are its arguments.
@jax.jit
def step(image: jax.Array, net: Net, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The distance of one image, `[1, H, W, 3]`, and its gradient by that image."""
    return jax.value_and_grad(lambda x: lpips(net, x, other).sum())(image)


@pytest.mark.parametrize("side", [16, 33])
def test_any_size_and_any_way_of_giving_pixels(net: Net, side: int) -> None:
    a, b = photos(side), photos(side)[::-1]
    expected = lpips(net, a, b)
    assert expected.shape == (3,) and expected.dtype == jnp.float32
    for x, y, more in (
        (signed(a), signed(b), {}),
        (np.float32(a) / 255, np.float32(b) / 255, {"range": (0, 1)}),
        (np.float32(a), b, {"range": (0.0, 255.0)}),
    ):
        np.testing.assert_allclose(
            lpips(net, x, y, **more), expected, rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("value", [pytest.param(-1.0, marks=pytest.mark.slow), 0.0])
def test_equal_and_black_images_have_finite_gradients(net: Net, value: float) -> None:
    flat, photo = jnp.full((1, 16, 16, 3), value), signed(photos(16))[:1]
    for a, b in ((flat, flat), (flat, photo), (photo, photo)):
        found, gradient = step(a, net, b)
        assert jnp.isfinite(gradient).all()
        if a is b:  # compiled, the two are not rounded alike
            assert lpips(net, a, b) == 0
            assert found < 1e-12 and jnp.abs(gradient).max() < 1e-6


def test_dead_features_have_finite_gradients(net: Net) -> None:
    """Where no channel of a position is above zero, as of a black image's can be."""
    params = net.variables["params"]
    dead = {**params, "conv1_2": jax.tree.map(lambda x: 0 * x, params["conv1_2"])}
    dead_net = net.replace(variables={"params": dead})
    a, b = signed(photos(16))[:2]
    assert jnp.isfinite(step(a[None], dead_net, b[None])[1]).all()


def test_it_serves_a_step_of_another_model(net: Net) -> None:
    """Within `jit`, where values are not known, and with the trunk in bfloat16."""
    target = signed(photos(16))[:1]
    loss, gradient = step(0.5 * target, net, target)
    moved = 0.5 * target - 0.05 * loss / jnp.square(gradient).sum() * gradient
    assert step(moved, net, target)[0] < loss
    fast = net.replace(model=net.model.clone(dtype="bfloat16"))
    found = jax.jit(lpips)(fast, 0.5 * target, target)
    np.testing.assert_allclose(found, loss, rtol=0.1)


@pytest.mark.parametrize(
    ("images", "more", "said"),
    [
        (np.zeros((1, 16, 16, 3), np.int32), {}, "expected uint8, or floats in"),
        (
            np.full((1, 16, 16, 3), 2.0),
            {},
            "values from 2 to 2; expected -1 to 1: give",
        ),
        (np.full((1, 16, 16, 3), -0.5), {"range": (0, 1)}, "expected 0 to 1"),
        (np.full((1, 16, 16, 3), np.nan), {}, "values from nan"),
        (np.zeros((1, 16, 16, 3)), {"range": (1, -1)}, "of black and of white"),
        (np.zeros((1, 8, 8, 3)), {}, "relu5_3 needs at least 16 pixels"),
        (np.zeros((1, 16, 16, 1)), {}, r"expected \[batch, height, width, 3\]"),
    ],
)
def test_images_of_other_values_are_refused(
    net: Net, images: np.ndarray, more: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        lpips(net, images, images, **more)


def test_images_of_two_sizes_are_refused(net: Net) -> None:
    with pytest.raises(ValueError, match="expected one"):
        lpips(net, photos(16), photos(32))


def test_other_nets_are_refused(net: Net) -> None:
    with pytest.raises(ValueError, match="LPIPS is of vgg16, in full width"):
        lpips(random_net("vgg16"), photos(), photos())
    with pytest.raises(ValueError, match="LPIPS is of vgg16, in full width"):
        lpips(random_net("vgg11"), photos(), photos())
    caffe = net.replace(preprocessing=layouts.CAFFE)
    with pytest.raises(ValueError, match="any_pixels=True"):
        lpips(caffe, photos(), photos())
    # Given its own pixels; conv1_1 scaled to them gives nearly torchvision's distances.
    a, b = photos(), np.roll(photos(), 1, axis=0)
    params = net.variables["params"]
    first = params["conv1_1"]
    std = np.array(layouts.TORCHVISION.std, np.float32).reshape(1, 1, 3, 1)
    kernel = first["kernel"] / (255 * std)
    turned = {**params, "conv1_1": {**first, "kernel": kernel}}
    found = lpips(caffe.replace(variables={"params": turned}), a, b, any_pixels=True)
    np.testing.assert_allclose(found, lpips(net, a, b), rtol=0.1)
    sized = dataclasses.replace(layouts.TORCHVISION, crop_size=32, test_scale=32)
    assert lpips(net.replace(preprocessing=sized), photos(), photos()).max() == 0
