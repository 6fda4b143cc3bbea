"""TrivialAugment, RandAugment and colour jitter: what is drawn, how often, and when.

What an operation does is Pillow's in `test_operations`. torchvision, of which the
tables of magnitudes are, is needed for the tests marked `slow` (the extra `parity`).
"""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import samples

from vgg_flax import config
from vgg_flax.images import augmentation, auto_augment, operations

TORCHVISIONS = {  # our names -> theirs
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng((height, width))
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def signed(name: str) -> bool:
    """Whether an operation goes both ways."""
    return name not in (
        "identity",
        "posterize",
        "solarize",
        "autocontrast",
        "equalize",
    )


def assert_drawn(drawn: Counter, expected: Counter) -> None:
    """Each outcome as often as its share of `expected`, within 5 deviations."""
    assert set(drawn) <= set(expected)
    total = sum(drawn.values())
    for outcome, weight in expected.items():
        share = weight / sum(expected.values())
        allowed = 5 * (total * share * (1 - share)) ** 0.5 + 1
        assert abs(drawn[outcome] - total * share) <= allowed


def outcomes(
    image: np.ndarray, magnitudes: auto_augment.Magnitudes, bins: range
) -> Counter:
    """What an operation may make of an image, as bytes, with how many ways to it."""
    ways = Counter()
    for name, operation in auto_augment.OPERATIONS.items():
        for chosen, sign in itertools.product(bins, (1, -1)):
            magnitude = float(magnitudes[name][chosen]) if name in magnitudes else 0
            magnitude *= sign if signed(name) else 1
            ways[operation(image, magnitude).tobytes()] += 1
    return ways


@pytest.mark.parametrize("channels", [1, 3])
def test_trivial_augment_takes_any_operation_at_any_magnitude(channels: int) -> None:
    image, rng = noise(6, 7, channels), np.random.default_rng(0)
    drawn = Counter(
        auto_augment.trivial_augment(image, rng).tobytes() for _ in range(4000)
    )
    expected = outcomes(image, auto_augment.trivial_magnitudes(), range(31))
    assert expected.total() == 14 * 31 * 2
    assert len(expected) > 200
    assert_drawn(drawn, expected)
    # The strongest, of ten operations, come as often as others: 4000 * 10 / 14 / 31.
    weaker = outcomes(image, auto_augment.trivial_magnitudes(), range(30))
    assert sum(drawn[outcome] for outcome in set(expected) - set(weaker)) > 20


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_takes_any_operations_one_after_the_other(magnitude: int) -> None:
    image, rng = noise(6, 7), np.random.default_rng(0)
    magnitudes, bins = (
        auto_augment.rand_magnitudes(6, 7),
        range(magnitude, magnitude + 1),
    )
    drawn = Counter(
        auto_augment.rand_augment(image, rng, 2, magnitude).tobytes()
        for _ in range(3000)
    )
    expected = Counter()
    for first, ways in outcomes(image, magnitudes, bins).items():
        between = np.frombuffer(first, np.uint8).reshape(image.shape)
        for second, more in outcomes(between, magnitudes, bins).items():
            expected[second] += ways * more
    assert_drawn(drawn, expected)
    once = {
        auto_augment.rand_augment(image, rng, 1, magnitude).tobytes()
        for _ in range(100)
    }
    assert once <= set(outcomes(image, magnitudes, bins))


def test_magnitudes_are_the_papers() -> None:
    """By hand: evenly spaced, posterizing to 8 to 2 bits, solarizing from 255 to 0."""
    trivial, rand = (
        auto_augment.trivial_magnitudes(),
        auto_augment.rand_magnitudes(224, 331),
    )
    bins = np.arange(31)
    for table, name, strongest in (
        (trivial, "shear_x", 0.99),
        (trivial, "translate_y", 32),
        (trivial, "rotate", 135),
        (trivial, "color", 0.99),
        (rand, "shear_y", 0.3),
        (rand, "translate_x", 150),  # of 331 columns
        (rand, "translate_y", 150 * 224 / 331),
        (rand, "rotate", 30),
        (rand, "sharpness", 0.9),
    ):
        np.testing.assert_allclose(table[name], bins / 30 * strongest, rtol=1e-6)
    for table in (trivial, rand):
        np.testing.assert_allclose(table["solarize"], 255 - 8.5 * bins, atol=1e-4)
    assert [*trivial["posterize"]] == [8 - round(b / 5) for b in range(31)]
    assert [*rand["posterize"]] == [8 - round(b / 7.5) for b in range(31)]
    assert (
        int(trivial["translate_x"][15]) == 15
    )  # 15.999999, as `torch.linspace` has it
    assert {name for name in TORCHVISIONS if signed(name)} == auto_augment.SIGNED


def jittered(image: np.ndarray, amounts: Any, seed: int) -> tuple[np.ndarray, str]:
    """What Pillow makes of the factors that come first, in whichever order fits ours.

    Returns:
      Our image, and the order: "bcsh" or another; "" where none fits.
    """
    rng = np.random.default_rng(seed)
    low, high = np.maximum(0, 1 - np.array(amounts)), 1 + np.array(amounts)
    low[3], high[3] = -amounts[3], amounts[3]
    factors = dict(zip("bcsh", rng.uniform(low, high), strict=True))
    found = augmentation.color_jitter(image, np.random.default_rng(seed), amounts)
    enhance = {
        "b": PIL.ImageEnhance.Brightness,
        "c": PIL.ImageEnhance.Contrast,
        "s": PIL.ImageEnhance.Color,
    }
    on = [key for key, amount in zip("bcsh", amounts, strict=True) if amount]
    for order in itertools.permutations(on):
        picture = PIL.Image.fromarray(image)
        for key in order:
            if key in enhance:
                picture = enhance[key](picture).enhance(factors[key])
            else:
                turned = operations.adjust_hue(np.asarray(picture), factors[key])
                picture = PIL.Image.fromarray(turned)
        if np.array_equal(found, np.asarray(picture)):
            return found, "".join(order)
    return found, ""


def test_color_jitter_changes_four_things_in_random_order() -> None:
    image = noise(8, 9)
    found = [jittered(image, (0.4, 0.5, 1.5, 0.2), seed) for seed in range(500)]
    orders = Counter("".join(order) for order in itertools.permutations("bcsh"))
    assert_drawn(Counter(order for _, order in found), orders)


@pytest.mark.parametrize("place", range(4))
def test_color_jitter_leaves_out_what_is_zero(place: int) -> None:
    amounts = [0.0] * 4
    amounts[place] = 0.5
    image = noise(8, 9)
    found = [jittered(image, tuple(amounts), seed) for seed in range(20)]
    assert {order for _, order in found} == {"bcsh"[place]}
    assert len({pixels.tobytes() for pixels, _ in found}) > 15


def test_grey_images_are_jittered_in_brightness_and_contrast() -> None:
    image, rng = noise(8, 9, 1), np.random.default_rng(0)
    found = augmentation.color_jitter(image, rng, (0.5, 0.5, 0.0, 0.0))
    assert found.shape == image.shape and (found != image).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("train_resize", ["pillow", "cv2"])
def test_operations_come_behind_crop_and_flip_and_jitter_behind_them(
    channels: int, train_resize: str
) -> None:
    image = noise(40, 50, channels)
    amounts = (0.4, 0.4, 0.0, 0.0)
    fields: Any = {"crop_size": 24, "train_resize": train_resize}
    plain = augmentation.make_train_view(config.DataConfig(**fields))
    fields |= {"color_jitter": amounts, "auto_augment": "rand"}
    fields |= {"rand_augment_ops": 3, "rand_augment_magnitude": 20}
    view = augmentation.make_train_view(config.DataConfig(**fields))
    for seed in range(10):
        rng, again = (np.random.default_rng(seed) for _ in range(2))
        expected = auto_augment.rand_augment(plain(image, rng), rng, 3, 20)
        expected = augmentation.color_jitter(expected, rng, amounts)
        found = view(image, again)
        np.testing.assert_array_equal(found, expected)
        assert found.flags.c_contiguous and found.shape == (24, 24, channels)
        assert rng.random() == again.random()


@pytest.mark.parametrize("train_view", ["paper", "resized_crop", "pad_crop"])
def test_what_is_off_draws_nothing(train_view: str) -> None:
    """Two draws for the place, or the area's, and one for the flip: as it ever was."""
    image = noise(256, 300)
    settings = config.DataConfig(train_view=train_view, rand_augment_ops=5)
    for seed in range(20):
        rng, again = (np.random.default_rng(seed) for _ in range(2))
        augmentation.make_train_view(settings)(image, rng)
        if train_view == "resized_crop":
            augmentation.random_area(settings, 256, 300, again)
        else:
            pad = 2 * settings.padding * (train_view == "pad_crop")
            again.integers(256, 257)
            again.integers(0, 256 + pad - 223)
            again.integers(0, 300 + pad - 223)
        again.random()
        assert rng.random() == again.random()


@pytest.fixture(scope="module")
def photos() -> list[PIL.Image.Image]:
    boxes = [(0, 0, 224, 224), (250, 100, 401, 323)]
    return [picture.crop(box) for picture in samples.pictures() for box in boxes]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_torchvision_makes_the_same_pixels_at_every_magnitude(
    policy: str, mode: str, photos: list[PIL.Image.Image]
) -> None:
    theirs = pytest.importorskip("torchvision.transforms.autoaugment")
    for photo in (photo.convert(mode) for photo in photos):
        image = np.asarray(photo).reshape(photo.height, photo.width, -1)
        if policy == "trivial":
            space = theirs.TrivialAugmentWide()._augmentation_space(31)
            magnitudes = auto_augment.trivial_magnitudes()
        else:
            size = image.shape[:2]
            space = theirs.RandAugment()._augmentation_space(31, size)
            magnitudes = auto_augment.rand_magnitudes(*size)
        assert list(space) == list(TORCHVISIONS.values())
        for ours, name in TORCHVISIONS.items():
            table, both = space[name]
            assert both == (ours in auto_augment.SIGNED)
            assert bool(table.ndim) == (ours in magnitudes)
            if table.ndim:  # to the bit, which some levels depend on
                np.testing.assert_array_equal(magnitudes[ours], table.numpy())
            for value, sign in itertools.product(
                table.reshape(-1).tolist(), (1, -1) if both else (1,)
            ):
                expected = theirs._apply_op(
                    photo, name, sign * value, theirs.InterpolationMode.NEAREST, None
                )
                found = auto_augment.OPERATIONS[ours](image, sign * value)
                np.testing.assert_array_equal(
                    found, np.asarray(expected).reshape(image.shape), err_msg=name
                )


@pytest.mark.slow
def test_torchvision_adjusts_colours_to_the_same_pixels(
    photos: list[PIL.Image.Image],
) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    for photo, name in itertools.product(
        photos, ("brightness", "contrast", "saturation", "hue")
    ):
        theirs = getattr(functional, f"adjust_{name}")
        ours = getattr(operations, f"adjust_{name}")
        values = np.linspace(-0.5, 0.5, 12) if name == "hue" else np.linspace(0, 3, 14)
        for value in values.tolist():
            np.testing.assert_array_equal(
                ours(np.asarray(photo), value),
                np.asarray(theirs(photo, value)),
                err_msg=f"{name} {value}",
            )
