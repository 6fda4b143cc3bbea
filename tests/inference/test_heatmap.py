"""Where a class is seen: against NumPy, finite differences, and bright blobs."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from conftest import random_net
from etils import epath

from tests import numpy_net as oracle_net
from vgg_flax import model, net
from vgg_flax.images import preprocessing
from vgg_flax.inference import heatmap
from vgg_flax.model import description


def random_picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def maps(net: net.Net, picture: np.ndarray, class_index: int) -> Any:
    """The two maps before they are laid over the picture."""
    shape = (1, *picture.shape)
    last = max(name for name in net.variables["params"] if name.startswith("conv5"))
    convolution = description.describe(net.model, shape)[last]
    tap = last.replace("conv", "relu")
    both = heatmap.class_maps(net, picture[None], class_index, tap, convolution.shape)
    return tuple(np.asarray(x) for x in both)


@pytest.mark.parametrize("variant", ["vgg11_lrn", "vgg16_bn"])
def test_grad_cam_is_that_of_numpy_and_finite_differences(variant: str) -> None:
    picture = random_picture(64, 100, 3)
    with jax.enable_x64(True):
        tested = random_net(variant, dtype="float64", fc6_window=2)
        probability, grad_cam = maps(tested, picture, 3)
        pixels = np.asarray(tested.preprocessing.normalize(picture[None], dtype=float))
    numpy_net = jax.tree.map(np.asarray, tested.variables)
    scores, taps, _ = oracle_net.oracle(tested.model, numpy_net, pixels)
    activation = taps[max(tap for tap in taps if tap.startswith("relu5"))]

    def class_scores(activation: np.ndarray) -> np.ndarray:
        """What comes after the activation, of Table 1: `[h, w, classes]`."""
        params = numpy_net["params"]
        x = oracle_net.pool(activation, "max")
        for name in ("fc6", "fc7"):
            side = params[name]["kernel"].shape[0]
            x = np.maximum(oracle_net.sliding_fc(x, params[name], side), 0)
        return oracle_net.sliding_fc(x, params["fc8"], 1)[0]

    score_map = class_scores(activation)
    np.testing.assert_allclose(score_map.mean((0, 1)), scores[0], rtol=1e-9)
    exponentials = np.exp(score_map - score_map.max(-1, keepdims=True))
    expected = (exponentials / exponentials.sum(-1, keepdims=True))[..., 3]
    np.testing.assert_allclose(probability, expected, rtol=1e-6)

    step, weights = 1e-6, []
    for channel in range(activation.shape[-1]):
        moved = np.zeros_like(activation)
        moved[..., channel] = step  # the sum of the gradients over positions
        plus, minus = (
            class_scores(activation + sign * moved)[..., 3].mean() for sign in (1, -1)
        )
        weights.append((plus - minus) / (2 * step))
    positions = activation.shape[1] * activation.shape[2]
    weighted = activation[0] @ (np.array(weights) / positions)
    assert (weighted < 0).any() and (weighted > 0).any()
    expected = np.maximum(weighted, 0)
    np.testing.assert_allclose(grad_cam, expected, rtol=1e-5, atol=1e-9)


def test_the_perturbed_activation_is_the_one_that_is_named() -> None:
    tested = random_net("vgg11")
    images = jnp.asarray(
        np.random.default_rng(0).normal(size=(1, 32, 32, 3)), "float32"
    )

    def taps(**collections: Any) -> Any:
        variables = {**tested.variables, **collections}
        return tested.model.apply(variables, images, mutable="intermediates")[1][
            "intermediates"
        ]

    plain = taps()
    moved = taps(perturbations={"pool3": jnp.full(plain["pool3"].shape, 0.5)})
    np.testing.assert_array_equal(moved["relu3_2"], plain["relu3_2"])
    np.testing.assert_array_equal(moved["pool3"], plain["pool3"] + 0.5)
    assert not np.array_equal(moved["relu4_1"], plain["relu4_1"])


def brightness_net() -> net.Net:
    """Class 0 scores higher the brighter the window is; class 1 scores nothing."""
    plain = random_net("vgg11", pooling="average", num_classes=2)
    # Each layer gives the mean of its window.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.full(leaf.shape, 1 / max(1, np.prod(leaf.shape[:3])))
            if path[-1].key == "kernel"
            else jnp.zeros_like(leaf)
        ),
        plain.variables,
    )
    variables["params"]["fc8"]["kernel"] *= jnp.array([30.0, 0.0])[None, None, None]
    pixels = preprocessing.Preprocessing((0.0,) * 3, (1.0,) * 3, 36, 32)
    return plain.replace(variables=variables, preprocessing=pixels)


def blob(row: int, column: int, side: int = 24) -> np.ndarray:
    """A dark picture, 160 x 224, with a bright square around a pixel."""
    picture = np.full((160, 224, 3), 8, np.uint8)
    top, left = max(0, row - side // 2), max(0, column - side // 2)
    picture[top : row + side // 2, left : column + side // 2] = 255
    return picture


@pytest.mark.parametrize(
    ("row", "column"), [(16, 16), (16, 208), (144, 16), (144, 208), (80, 112)]
)
def test_a_bright_blob_is_where_the_maps_are_highest(row: int, column: int) -> None:
    picture = blob(row, column)
    heatmaps = heatmap.make(brightness_net(), picture, 0, scale=160)
    np.testing.assert_array_equal(heatmaps.picture, picture)
    for values in (heatmaps.probability, heatmaps.grad_cam):
        assert values.shape == (160, 224)
        top = np.unravel_index(values.argmax(), values.shape)
        assert abs(top[0] - row) <= 16 and abs(top[1] - column) <= 16


def test_maps_of_a_mirrored_picture_are_mirrored() -> None:
    tested, picture = brightness_net(), blob(40, 60)
    heatmaps = heatmap.make(tested, picture, 0, scale=160)
    for turn in (np.fliplr, np.flipud):
        turned = heatmap.make(tested, turn(picture), 0, scale=160)
        for name in ("probability", "grad_cam"):
            expected = turn(getattr(heatmaps, name))
            assert np.ptp(expected) > 0.001
            np.testing.assert_allclose(getattr(turned, name), expected, atol=1e-6)


def test_a_map_lies_where_its_windows_have_their_middles() -> None:
    # Position i of vgg16's score map is the crop that starts at pixel 32 i, whose
    # middle is 32 i + 111.5: a map that says so gives each pixel its own place.
    layer = description.describe(model.VGG("vgg16"), (1, 320, 448, 3))["fc8"]
    rows = 111.5 + 32 * np.arange(4.0)
    columns = 111.5 + 32 * np.arange(8.0)
    for values, axis, pixels, ends in (
        (np.repeat(rows[:, None], 8, 1), 0, 320, (111.5, 207.5)),
        (np.repeat(columns[None], 4, 0), 1, 448, (111.5, 335.5)),
    ):
        overlaid = heatmap.upsample(jnp.asarray(values), layer, 320, 448)
        assert overlaid.shape == (320, 448)
        places = np.clip(np.arange(pixels), *ends).reshape((-1, 1) if axis == 0 else -1)
        expected = np.broadcast_to(places, (320, 448))
        np.testing.assert_allclose(overlaid, expected, rtol=1e-6)


def test_by_default_the_picture_is_twice_the_test_scale() -> None:
    heatmaps = heatmap.make(random_net("vgg11"), random_picture(50, 75, 3), 1)
    assert heatmaps.picture.shape == (72, 108, 3)  # test_scale is 36
    assert heatmaps.grad_cam.dtype.kind == "f" and heatmaps.grad_cam.min() >= 0
    assert 0 <= heatmaps.probability.min() <= heatmaps.probability.max() <= 1


def test_grey_pictures_and_pooled_heads_have_maps_too() -> None:
    tested = random_net("vgg11_bn", in_channels=1, head="gap")
    heatmaps = heatmap.make(tested, random_picture(50, 75, 1), 9)
    assert heatmaps.probability.shape == heatmaps.picture.shape[:2] == (72, 108)


def test_a_scale_too_small_for_the_net_is_refused() -> None:
    with pytest.raises(heatmap.HeatmapError, match=r"scale=20.* at least 32 pixels"):
        heatmap.make(random_net("vgg11"), random_picture(50, 75, 3), 0, scale=20)


def drawn(path: pathlib.Path, picture: np.ndarray, *maps: np.ndarray) -> np.ndarray:
    """The PNG of a picture and its two maps."""
    heatmap.draw_heatmaps(epath.Path(path), "\u6771\u4eac", picture, *maps)
    return np.asarray(PIL.Image.open(path).convert("RGB"), np.float64)


def test_maps_are_on_one_scale_and_the_picture_is_seen_beneath(
    tmp_path: pathlib.Path,
) -> None:
    file = tmp_path / "a.png"
    picture = np.kron(random_picture(9, 13, 1), np.ones((24, 24, 1), np.uint8))
    shape = picture.shape[:2]
    zeros, halves, ones = np.zeros(shape), np.full(shape, 0.5), np.ones(shape)
    bare, half = drawn(file, picture, zeros, zeros), drawn(file, picture, halves, zeros)
    full = drawn(file, picture, ones, ones)
    # The map of a half is the same, whatever its largest value.
    peaked = halves.copy()
    peaked[:24, :24] = 1
    peak = drawn(file, picture, peaked, zeros)
    columns = np.flatnonzero((half != bare).any(axis=(0, 2)))
    rows = np.flatnonzero((half != bare).any(axis=(1, 2)))[100:]
    panel = np.ix_(rows, columns)
    assert len(rows) > 200 and len(columns) > 300
    same = (peak[panel] == half[panel]).all(axis=2)
    assert same.mean() > 0.95
    # What has no heat is as it was, and what has all of it is still a picture.
    assert np.ptp(bare[panel], axis=2).max() == 0
    for channel in range(3):
        seen = np.corrcoef(
            bare[panel][..., 0].ravel(), full[panel][..., channel].ravel()
        )
        assert seen[0, 1] > 0.95
    assert (full[panel] - bare[panel]).std() > 10
