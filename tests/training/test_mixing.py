"""Mixup, CutMix, random erasing, soft labels: by their papers, for any layout."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_flax import metrics, parallel
from vgg_flax.config import RegularizationConfig
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.training import mixing
from vgg_flax.training.mixing import Mixing

SIDE, CLASSES = 12, 5
ALL = RegularizationConfig(
    label_smoothing=0.1, mixup_alpha=0.4, cutmix_alpha=1.0, random_erasing=0.5
)
PIXELS = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.2), SIDE, SIDE)


def some_images(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((count, SIDE, SIDE, 3), np.float32)


def some_batch(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "image": rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, count).astype(np.int32),
        "mask": np.arange(count) != 2,
        "index": np.arange(count, dtype=np.int32),
    }


@pytest.mark.parametrize("share", [0.0, 0.3, 0.77, 1.0])
def test_mixup_of_an_image_with_itself_is_the_image(share: float) -> None:
    images = some_images(2)
    np.testing.assert_array_equal(mixing.mixup(images, images, share), images)


def test_mixup_is_the_sum_of_its_shares() -> None:
    one, other = some_images(2), some_images(2, seed=1)
    mixed = mixing.mixup(jnp.asarray(one), jnp.asarray(other), 0.3)
    np.testing.assert_allclose(mixed, 0.3 * one + 0.7 * other, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(mixing.mixup(jnp.asarray(one), other, 1.0), one)


def test_the_area_of_cutmixs_box_is_what_the_label_loses() -> None:
    one, other = jnp.asarray(some_images(1)[0]), jnp.asarray(some_images(1, seed=1)[0])
    box: Any = (3, 0, 7, 9)
    mixed, share = mixing.cutmix(one, other, box)
    expected = np.array(one)
    expected[3:7, 0:9] = other[3:7, 0:9]
    np.testing.assert_array_equal(mixed, expected)
    assert float(share) == pytest.approx(1 - 4 * 9 / SIDE**2)


def test_boxes_lie_in_the_image_and_have_the_area_that_is_asked_for() -> None:
    height, width = 40, 60
    keys = jax.random.split(jax.random.key(0), 400)
    draw = jax.jit(jax.vmap(lambda key, area: mixing.cut_box(key, area, height, width)))
    areas = np.linspace(0, 1, 400, dtype=np.float32)
    top, left, bottom, right = map(np.asarray, draw(keys, areas))
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= height).all() and (right <= width).all()
    halves = np.floor(0.5 * np.sqrt(areas) * height)
    is_whole = (top > 0) & (bottom < height)
    np.testing.assert_array_equal((bottom - top)[is_whole], 2 * halves[is_whole])
    assert ((bottom - top) <= 2 * halves).all()
    assert is_whole.sum() > 100 and (~is_whole).sum() > 100  # near an edge: cut off


def test_erasing_takes_a_rectangle_of_the_papers_area_and_aspect() -> None:
    height, width = 50, 50
    keys = jax.random.split(jax.random.key(0), 500)
    draw = jax.jit(jax.vmap(lambda key: mixing.erased_box(key, height, width)))
    top, left, bottom, right = map(np.asarray, draw(keys))
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= height).all() and (right <= width).all()
    h, w = bottom - top, right - left
    area, aspect = h * w / (height * width), h / w
    assert (area > 0.015).all() and (area < 0.35).all()
    assert area.min() < 0.03 and area.max() > 0.3
    assert (aspect > 0.25).all() and (aspect < 4).all()  # sides are whole
    assert abs(np.log(aspect).mean()) < 0.1


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0), (1.0, 1), (0.25, 0.25)])
def test_images_are_erased_as_often_as_is_asked_for(
    probability: float, share: float
) -> None:
    images, index = jnp.zeros((400, 20, 20, 1)), jnp.arange(400)
    erased = mixing.random_erasing(
        jax.random.key(1), images, index, (1.0,), probability
    )
    hit = np.asarray(erased).any(axis=(1, 2, 3)).mean()
    assert hit == pytest.approx(share, abs=0.06 * (0 < share < 1))


def test_what_is_erased_follows_from_the_place_in_the_global_batch() -> None:
    images, index = jnp.asarray(some_images(6)), jnp.arange(6)
    erase = functools.partial(
        mixing.random_erasing, jax.random.key(1), fill=(0.0,) * 3, probability=0.6
    )
    whole = erase(images, index)
    order = jnp.array([4, 1, 3])
    np.testing.assert_array_equal(erase(images[order], index[order]), whole[order])


def test_targets_are_smoothed_and_weighted_labels() -> None:
    weights = (1.0, 2.0, 0.5)
    found = mixing.targets(jnp.array([2, 0]), 3, jnp.float32, 0.3, weights)
    expected = np.array([[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]) * weights
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_loss_of_soft_targets_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    labels, weights = rng.integers(0, 4, 6), (0.5, 1.0, 2.0, 3.0)
    targets = mixing.targets(jnp.asarray(labels), 4, jnp.float32, 0.2, weights)
    ours = metrics.sums(
        jnp.asarray(logits), jnp.asarray(labels), jnp.ones(6, bool), targets
    )
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits),
        torch.tensor(labels),
        weight=torch.tensor(weights),
        label_smoothing=0.2,
        reduction="sum",
    )
    assert float(ours["loss"]) == pytest.approx(float(theirs), rel=1e-6)


def test_without_any_of_it_the_images_are_those_of_normalize() -> None:
    batch = some_batch(4)
    off = Mixing(RegularizationConfig(), PIXELS, "float32")
    pixels, share = off(jax.random.key(0), batch)
    assert share is None
    assert off.labels(batch, share, CLASSES) is batch
    np.testing.assert_array_equal(
        PIXELS.standardize(pixels), PIXELS.normalize(batch["image"])
    )


def mixed(devices: int, pieces: int, seed: int, **other: Any) -> Any:
    """Images, shares, labels and targets of a batch of 8, in the batch's order."""
    mix = Mixing(dataclasses.replace(ALL, **other), PIXELS, "float32")

    def step(_: Any, batch: Any) -> Any:
        batch = mix.with_partners(batch)
        parts = []
        for piece in range(pieces):  # as the step cuts them
            part = jax.tree.map(lambda x, i=piece: x[i::pieces], batch)
            images, share = mix(jax.random.key(seed), part)
            labelled = mix.labels(part, share, CLASSES)
            parts.append((images, share, labelled["label"], labelled["targets"]))
        stacked = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *parts)
        whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked)
        gathered = jax.lax.all_gather(whole, parallel.AXIS_NAME)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), gathered)

    chosen = jax.devices()[:devices]
    mapped = parallel.pmap_step(step, donate_state=False, devices=chosen)
    return jax.device_get(mapped(np.zeros(()), parallel.shard(some_batch(8), chosen)))


@pytest.mark.parametrize(
    ("devices", "pieces", "seed"),
    [
        (2, 2, 0),
        (8, 1, 3),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in ((2, 1, 0), (4, 2, 0), (2, 2, 3), (4, 2, 3))
        ),
    ],
)
def test_neither_devices_nor_accumulation_change_what_is_mixed(
    devices: int, pieces: int, seed: int
) -> None:
    whole, other = mixed(1, 1, seed), mixed(devices, pieces, seed)
    for ours, theirs in zip(whole, other, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_an_image_is_mixed_with_the_one_before_it_in_the_batch(kind: str) -> None:
    alone = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, kind: 1.0}
    images, share, labels, targets = mixed(
        2, 1, 0, random_erasing=0.0, label_smoothing=0.0, **alone
    )
    batch = some_batch(8)
    own = batch["image"].astype(np.float32) / 255
    other = np.roll(own, 1, axis=0)
    left = share[0]
    assert 0 < left < 1
    # The third example is missing, and the one behind it stays alone.
    np.testing.assert_array_equal(share == 1, np.arange(8) == 3)
    if kind == "mixup_alpha":
        expected = left * own + (1 - left) * other
        np.testing.assert_allclose(images[4:], expected[4:], rtol=0, atol=1e-6)
    else:
        is_own = np.isclose(images[4], own[4], rtol=0, atol=1e-6).all(axis=-1)
        assert is_own.mean() == pytest.approx(left)
        np.testing.assert_allclose(
            images[4][~is_own], other[4][~is_own], rtol=0, atol=1e-6
        )
    np.testing.assert_allclose(images[3], own[3], rtol=0, atol=1e-6)
    one_hot = np.eye(CLASSES)[batch["label"]]
    expected = left * one_hot + (1 - left) * np.roll(one_hot, 1, axis=0)
    np.testing.assert_allclose(targets[4:], expected[4:], atol=1e-6)
    larger = batch["label"] if left >= 0.5 else np.roll(batch["label"], 1)
    np.testing.assert_array_equal(labels[4:], larger[4:])


def test_each_batch_has_one_of_mixup_and_cutmix() -> None:
    mix = Mixing(ALL, PIXELS, "float32")
    own = jax.jit(jax.vmap(lambda key: mix.shares(key, SIDE, SIDE)[0]))
    maps = np.asarray(own(jax.random.split(jax.random.key(0), 200)))
    is_cut = ((maps == 0) | (maps == 1)).all(axis=(1, 2, 3))
    is_even = (maps == maps[:, :1, :1]).all(axis=(1, 2, 3))
    assert (is_cut | is_even).all()
    assert 0.35 < is_cut.mean() < 0.65
