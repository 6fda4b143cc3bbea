"""The paper's views, and posteriors computed from them in padded batches."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
from nets import PIXELS, logits, tiny_net

from vgg_flax.errors import ConfigError
from vgg_flax.evaluation import posteriors, protocols
from vgg_flax.evaluation.protocols import Protocol, Views
from vgg_flax.model import layers
from vgg_flax.net import Net

pytestmark = pytest.mark.usefixtures("shallow")

CENTER, DENSE = Views("center", 32, False), Views("dense", 32, False)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """427 x 640 pixels of a flower."""
    return samples.photos()[1]


def posterior(
    net: Net, image: np.ndarray, protocol: Protocol, **settings: Any
) -> np.ndarray:
    """A net's posterior of an image under a protocol."""
    views = protocol.views()
    taken = {(0, v): protocols.take(v, image, net.preprocessing) for v in views}
    run = posteriors.Posteriors([net], posteriors.Settings(**settings))
    ((tag, found),) = run.compute([("photo", taken)])
    assert tag == "photo"
    return np.exp(protocols.log_mean([found[0, v] for v in views]))


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("side", "starts"),
    [(224, (0, 0, 0, 0, 0)), (256, (0, 8, 16, 24, 32)), (341, (0, 29, 58, 88, 117))],
)
def test_crops_of_the_grid_begin_where_the_paper_has_them(
    side: int, starts: tuple[int, ...]
) -> None:
    assert protocols.box_starts(side, 224) == starts  # quarters of side - 224, by hand


def test_half_a_pixel_goes_to_the_even_one() -> None:
    assert protocols.box_starts(226, 224) == (0, 0, 1, 2, 2)  # 0, 0.5, 1, 1.5, 2
    assert protocols.box_starts(230, 224) == (0, 2, 3, 4, 6)  # 0, 1.5, 3, 4.5, 6


def test_multicrop_is_25_crops_and_their_mirrors(photo: np.ndarray) -> None:
    views = protocols.take(Views("multicrop", 40, True), photo, PIXELS)
    assert len(views) == 50
    whole = PIXELS.rescale(photo, 40)  # 40 x 59
    np.testing.assert_array_equal(views[0], whole[:32, :32])
    np.testing.assert_array_equal(views[-2], whole[-32:, -32:])
    np.testing.assert_array_equal(views[1], whole[:32, :32][:, ::-1])
    middle = whole[4:36, 14:46]  # 27 / 2 = 13.5 -> 14; 14 of 13.5 by even rounding
    np.testing.assert_array_equal(views[2 * 12], middle)


def test_protocols_are_the_views_they_say() -> None:
    both = Protocol("both", (256, 384, 512), flip=True).views()
    assert [v.kind for v in both] == ["dense"] * 3 + ["multicrop"] * 3
    assert all(v.flip for v in both)
    assert Protocol("multicrop", (256,)).views() == (Views("multicrop", 256, True),)
    assert Protocol("center", (256,)).views() == (Views("center", 256, False),)


@pytest.mark.parametrize(
    ("variant", "window"), [("vgg8", 1), ("vgg16_1x1_bn", 2), ("vgg11_lrn", 1)]
)
def test_padding_changes_nothing(float64: None, variant: str, window: int) -> None:
    net = tiny_net(variant, dtype="float64", fc6_window=window)
    rng = np.random.default_rng(1)
    sizes = [(64, 91), (97, 70)]
    padded = 10 * rng.normal(size=(2, 128, 128, 3))  # whatever it is full of
    apply = jax.jit(net.model.apply)
    found = np.asarray(apply(net.variables, padded, sizes=jnp.array(sizes)))
    for i, (height, width) in enumerate(sizes):
        alone = apply(net.variables, padded[i : i + 1, :height, :width])
        np.testing.assert_allclose(found[i], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("pooling", "head"), [("average", "fc"), ("max", "gap"), ("max", "linear")]
)
def test_padding_changes_nothing_in_float32(pooling: str, head: str) -> None:
    net = tiny_net("vgg8_bn", pooling=pooling, head=head, fc6_window=2)
    images = np.random.default_rng(2).normal(size=(1, 75, 64, 3)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (0, 21), (0, 64), (0, 0)))
    apply = jax.jit(net.model.apply)
    found = apply(net.variables, padded, sizes=jnp.array([[75, 64]]))
    alone = apply(net.variables, images)
    # A share of the largest: a sum's order is the machine's, and so is its rounding.
    atol = 1e-6 * np.abs(alone).max()
    np.testing.assert_allclose(found, alone, rtol=0, atol=atol)


def test_dense_in_a_bucket_is_dense_without(photo: np.ndarray) -> None:
    net = tiny_net("vgg8_bn")
    found = posterior(net, photo, Protocol("dense", (70,)))
    image = PIXELS.rescale(photo, 70)
    assert image.shape == (70, 104, 3)
    assert protocols.bucket(*image.shape[:2]) == (96, 128)
    alone = jax.nn.softmax(logits(net, image[None]))[0]
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-6)


def test_dense_at_the_crop_size_of_a_square_photo_is_its_centre_crop(
    photo: np.ndarray,
) -> None:
    net, square = tiny_net(), photo[:400, 100:500]
    center = posterior(net, square, Protocol("center", (32,)))
    dense = posterior(net, square, Protocol("dense", (32,)))
    np.testing.assert_allclose(dense, center, rtol=0, atol=1e-5)
    view = net.preprocessing.rescale(square, 32)
    expected = jax.nn.softmax(logits(net, view[None]))[0]
    np.testing.assert_allclose(center, expected, rtol=0, atol=1e-6)


def test_with_flip_a_mirrored_image_has_the_same_posterior(photo: np.ndarray) -> None:
    # A width of 107 pixels: with a padded mirror, or 32-pixel cropping, it would not.
    net, image = tiny_net(), PIXELS.rescale(photo, 72)
    flipped = Protocol("dense", (72,), flip=True)
    here, there = (posterior(net, x, flipped) for x in (image, image[:, ::-1]))
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-6)
    one_way = posterior(net, image, Protocol("dense", (72,)))
    assert abs(one_way - here).max() > 1e-5


def test_center_is_the_test_view_and_scales_are_averaged(photo: np.ndarray) -> None:
    net = tiny_net()
    found = posterior(net, photo, Protocol("center", (40, 48)))
    views = [
        dataclasses.replace(PIXELS, test_scale=scale).test_view(photo)
        for scale in (40, 48)
    ]
    expected = jax.nn.softmax(logits(net, np.stack(views))).mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_both_is_the_mean_of_dense_and_multicrop(photo: np.ndarray) -> None:
    found = {
        name: posterior(tiny_net(), photo, Protocol(name, (40, 64), flip=True))
        for name in ("dense", "multicrop", "both")
    }
    mean = (found["dense"] + found["multicrop"]) / 2
    np.testing.assert_allclose(found["both"], mean, rtol=0, atol=1e-7)
    assert abs(found["dense"] - found["multicrop"]).max() > 1e-5


def test_multicrop_is_the_mean_of_fifty_softmaxes(photo: np.ndarray) -> None:
    net, whole = tiny_net(), PIXELS.rescale(photo, 48)  # 48 x 71
    crops = []
    for i in range(5):
        for j in range(5):
            top, left = round(i * (48 - 32) / 4), round(j * (71 - 32) / 4)
            crop = whole[top : top + 32, left : left + 32]
            crops += [crop, crop[:, ::-1]]
    expected = jax.nn.softmax(logits(net, np.stack(crops))).mean(axis=0)
    found = posterior(net, photo, Protocol("multicrop", (48,)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_batches_of_any_size_give_the_same(photo: np.ndarray) -> None:
    protocol = Protocol("both", (40, 64), flip=True)
    expected = posterior(tiny_net(), photo, protocol, batch_size=16)
    for batch_size in (1, 7, 64):
        found = posterior(tiny_net(), photo, protocol, batch_size=batch_size)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_every_image_comes_once_whatever_its_shape() -> None:
    rng = np.random.default_rng(0)
    shapes = [(32, 32 + 7 * i) for i in range(6)]
    shapes += [(32 + 7 * i, 32) for i in range(5)]
    images = [rng.integers(0, 255, (*shape, 3), np.uint8) for shape in shapes]
    cell = (0, Views("dense", 32, True))
    run = posteriors.Posteriors([tiny_net()], posteriors.Settings(batch_size=8))
    found = dict(
        run.compute(
            (i, {cell: protocols.take(cell[1], image, PIXELS)})
            for i, image in enumerate(images)
        )
    )
    assert sorted(found) == list(range(11))
    net = tiny_net()
    for i in (3, 5, 10):
        pair = np.stack([images[i], images[i][:, ::-1]])
        expected = jax.nn.softmax(logits(net, pair)).mean(axis=0)
        np.testing.assert_allclose(np.exp(found[i][cell]), expected, atol=1e-6)
    assert len(run.shapes) == 4  # 32 x 32, 64, 96; 64 x 32


def test_few_images_of_a_shape_make_a_small_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On eight devices: of 32 x 32 pixels 64 make a batch, of 32 x 96 pixels 16."""
    cell = (0, Views("dense", 32, False))
    images = np.random.default_rng(0).integers(0, 255, (70, 32, 96, 3), np.uint8)
    views = [*images[:65, :, :32], *images[65:]]
    run = posteriors.Posteriors([tiny_net()], posteriors.Settings(batch_size=64))
    with caplog.at_level("INFO"):
        found = dict(run.compute((i, {cell: [v]}) for i, v in enumerate(views)))
    assert sorted(found) == list(range(70))
    compiled = [m for m in caplog.messages if m.startswith("compiling shape")]
    assert [m.split()[3:5] for m in compiled] == [["64", "images"], ["8", "images"]]
    expected = jax.nn.softmax(logits(tiny_net(), images[65:]))
    ours = [np.exp(found[i][cell]) for i in range(65, 70)]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("count", "size"), [(96, 48), (64, 64), (10, 16), (65, 40)])
def test_batches_of_crops_leave_the_last_one_full(
    count: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """At most 64, on eight devices."""
    cell = (0, Views("center", 32, False))
    images = np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), np.uint8)
    run = posteriors.Posteriors([tiny_net()], posteriors.Settings(batch_size=64))
    with caplog.at_level("INFO"):
        examples = ((i, {cell: [image]}) for i, image in enumerate(images))
        found = dict(run.compute(examples, count))
    assert sorted(found) == list(range(count))
    (compiled,) = [m for m in caplog.messages if m.startswith("compiling shape")]
    assert compiled.startswith(f"compiling shape 1: {size} images")


def test_the_number_of_shapes_is_bounded() -> None:
    for scale in (256, 384, 512):
        wide = {protocols.bucket(scale, side) for side in range(scale, 4 * scale)}
        assert len(wide) <= 8 * 2 + 2
        assert all(height == scale for height, _ in wide)
    for side in range(32, 4000):
        rounded, _ = protocols.bucket(side, 32)
        assert side <= rounded < side + max(32, side / 8)
        assert rounded % 32 == 0


def test_only_the_chosen_classes_take_part(photo: np.ndarray) -> None:
    net = tiny_net()
    found = posterior(net, photo, Protocol("center", (32,)), classes=(7, 2, 5))
    view = dataclasses.replace(PIXELS, test_scale=32).test_view(photo)
    expected = jax.nn.softmax(logits(net, view[None])[0, np.array([7, 2, 5])])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_nets_see_their_own_pixels(photo: np.ndarray) -> None:
    first = tiny_net()
    other = dataclasses.replace(
        PIXELS, mean=(0.1, 0.2, 0.3), test_scale=48, crop_size=48, resize="cv2"
    )
    second = tiny_net(seed=1).replace(preprocessing=other)
    views = Views("center", 48, False)
    nets = [first, second]
    taken = {
        (i, views): protocols.take(views, photo, net.preprocessing)
        for i, net in enumerate(nets)
    }
    run = posteriors.Posteriors(nets, posteriors.Settings())
    ((_, found),) = run.compute([("photo", taken)])
    for i, net in enumerate(nets):
        pixels = dataclasses.replace(net.preprocessing, test_scale=48)
        expected = jax.nn.log_softmax(logits(net, pixels.test_view(photo)[None]))[0]
        np.testing.assert_allclose(found[i, views], expected, rtol=0, atol=1e-5)


def test_a_net_of_nan_is_named(photo: np.ndarray) -> None:
    net = tiny_net()
    broken = net.replace(variables=jax.tree.map(lambda x: x * np.nan, net.variables))
    with pytest.raises(posteriors.NotFiniteError, match=r"vgg8-0 .*photo"):
        posterior(broken, photo, Protocol("center", (32,)))


def test_the_mean_of_posteriors_does_not_underflow() -> None:
    tiny = protocols.log_mean([np.array([0.0, -2000.0]), np.array([0.0, -3000.0])])
    np.testing.assert_allclose(tiny, [0, -2000 - np.log(2)], rtol=1e-15)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (Protocol("center", (31,)), "scale 31 is smaller than the net's crop, 32"),
        (Protocol("both", (31,)), "smallest image the net takes, 32"),
        (Protocol("dense", (64, 64)), "expected different sizes"),
        (Protocol("dense", ()), "expected different sizes"),
    ],
)
def test_scales_are_checked(protocol: Protocol, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        protocols.check_scales(protocol, tiny_net().model, PIXELS)


def adaptive_numpy(x: np.ndarray, side: int) -> np.ndarray:
    """Adaptive average pooling by its definition: `[H, W, C]`."""
    height, width, channels = x.shape
    out = np.zeros((side, side, channels))
    for i in range(side):
        for j in range(side):
            rows = slice(i * height // side, -(-(i + 1) * height // side))
            columns = slice(j * width // side, -(-(j + 1) * width // side))
            out[i, j] = x[rows, columns].mean(axis=(0, 1))
    return out


def test_adaptive_pooling_is_its_definition_and_torchs(float64: None) -> None:
    x = np.random.default_rng(0).normal(size=(3, 12, 16, 2))
    sizes = [(12, 16), (7, 9), (5, 3)]
    found = np.asarray(layers.adaptive_average_pool(jnp.array(x), 7, jnp.array(sizes)))
    for i, (height, width) in enumerate(sizes):
        expected = adaptive_numpy(x[i, :height, :width], 7)
        np.testing.assert_allclose(found[i], expected, rtol=0, atol=1e-12)
    torch = pytest.importorskip("torch")
    pool = torch.nn.AdaptiveAvgPool2d((7, 7))
    for i, (height, width) in enumerate(sizes):
        theirs = pool(torch.tensor(x[i, :height, :width].transpose(2, 0, 1)))
        np.testing.assert_allclose(
            found[i], theirs.numpy().transpose(1, 2, 0), rtol=0, atol=1e-12
        )


def test_an_adaptive_net_pools_before_fc6(float64: None) -> None:
    net = tiny_net(fc6_window=2, dtype="float64")
    adaptive = net.model.clone(adaptive_pool=True)
    assert (net.model.smallest_image, adaptive.smallest_image) == (64, 32)
    rng = np.random.default_rng(0)
    at_crop = rng.normal(size=(1, 64, 64, 3))
    apply = functools.partial(jax.jit(adaptive.apply), net.variables)
    np.testing.assert_allclose(
        apply(at_crop), jax.jit(net.model.apply)(net.variables, at_crop), atol=1e-12
    )
    larger = rng.normal(size=(1, 100, 161, 3))
    tap = jax.jit(functools.partial(net.model.apply, mutable="intermediates"))
    _, taps = tap(net.variables, larger)
    pooled = adaptive_numpy(taps["intermediates"]["pool5"][0], 2)
    x = pooled.reshape(-1)
    for name in ("fc6", "fc7", "fc8"):
        kernel, bias = (net.variables["params"][name][k] for k in ("kernel", "bias"))
        x = x @ np.asarray(kernel).reshape(-1, kernel.shape[-1]) + np.asarray(bias)
        x = x if name == "fc8" else np.maximum(x, 0)
    np.testing.assert_allclose(apply(larger)[0], x, rtol=0, atol=1e-12)
    padded = np.pad(larger, ((0, 0), (0, 28), (0, 31), (0, 0)))
    in_bucket = apply(padded, sizes=jnp.array([[100, 161]]))
    np.testing.assert_allclose(in_bucket[0], x, rtol=0, atol=1e-12)
