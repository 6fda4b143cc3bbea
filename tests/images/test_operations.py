"""What augmentation does to pixels, against Pillow's own functions, pixel for pixel."""

import itertools
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import samples

from vgg_flax.images import operations

Picture = PIL.Image.Image
AFFINE = PIL.Image.Transform.AFFINE


def affine(picture: Picture, *inverse: float) -> Picture:
    return picture.transform(picture.size, AFFINE, inverse)


def turned(picture: Picture, turn: float) -> Picture:
    """The hue's channel of Pillow's HSV turned, by 255ths that wrap at 256."""
    if picture.mode == "L":
        return picture
    hue, *others = picture.convert("HSV").split()
    steps = int(turn * 255)
    hue = hue.point([(value + steps) % 256 for value in range(256)])
    return PIL.Image.merge("HSV", (hue, *others)).convert("RGB")


def posterized(picture: Picture, bits: float) -> Picture:
    return PIL.ImageOps.posterize(picture, int(bits))


FACTORS = (0.0, 0.01, 0.4, 0.999, 1.0, 1.3, 1.99, 4.0)
SLOPES = (0.0, 0.033, -0.033, 0.3, -0.3, 0.66, 0.99, -0.99, 3.0, -3.0)
PIXELS = (0.0, 0.9, -0.9, 1.0, 3.7, -3.7, 15.999999, -32.0, 500.0, -500.0)
# Ours, Pillow's, and at which magnitudes they are compared.
PAIRS: dict[str, tuple[Callable, Callable, tuple[float, ...]]] = {
    "shear_x": (operations.shear_x, lambda p, m: affine(p, 1, m, 0, 0, 1, 0), SLOPES),
    "shear_y": (operations.shear_y, lambda p, m: affine(p, 1, 0, 0, m, 1, 0), SLOPES),
    "translate_x": (
        operations.translate_x,
        lambda p, m: affine(p, 1, 0, -int(m), 0, 1, 0),
        PIXELS,
    ),
    "translate_y": (
        operations.translate_y,
        lambda p, m: affine(p, 1, 0, 0, 0, 1, -int(m)),
        PIXELS,
    ),
    "rotate": (
        operations.rotate,
        lambda p, m: p.rotate(m),
        (0.0, 4.5, -30.0, 90.0, -135.0, 180.0),
    ),
    "brightness": (
        operations.adjust_brightness,
        lambda p, m: PIL.ImageEnhance.Brightness(p).enhance(m),
        FACTORS,
    ),
    "contrast": (
        operations.adjust_contrast,
        lambda p, m: PIL.ImageEnhance.Contrast(p).enhance(m),
        FACTORS,
    ),
    "saturation": (
        operations.adjust_saturation,
        lambda p, m: PIL.ImageEnhance.Color(p).enhance(m),
        FACTORS,
    ),
    "sharpness": (
        operations.adjust_sharpness,
        lambda p, m: PIL.ImageEnhance.Sharpness(p).enhance(m),
        FACTORS,
    ),
    "hue": (operations.adjust_hue, turned, (-0.5, -0.37, -0.01, 0.0, 0.1, 0.5)),
    "posterize": (operations.posterize, posterized, (2.0, 3.0, 4.0, 7.0, 8.0)),
    "solarize": (
        operations.solarize,
        PIL.ImageOps.solarize,
        (0.0, 8.5, 127.0, 127.5, 246.5, 255.0),
    ),
    "autocontrast": (
        lambda image, _: operations.autocontrast(image),
        lambda p, _: PIL.ImageOps.autocontrast(p),
        (0.0,),
    ),
    "equalize": (
        lambda image, _: operations.equalize(image),
        lambda p, _: PIL.ImageOps.equalize(p),
        (0.0,),
    ),
}


def pixels_of(picture: Picture) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)


def pictures() -> list[Picture]:
    """Parts of two photos, noise, few levels, one level; of many sizes; grey, too."""
    rng = np.random.default_rng(0)
    boxes = [(250, 100, 370, 190), (300, 200, 301, 201), (9, 9, 11, 60), (7, 7, 60, 10)]
    taken = [photo.crop(box) for photo in samples.pictures() for box in boxes]
    arrays = [
        rng.integers(0, 256, (17, 16, 3)),
        rng.integers(100, 103, (40, 33, 3)),
        np.where(rng.random((30, 50, 1)) < 0.01, 200, np.array([0, 77, 255])),
        np.full((20, 20, 3), 113),
    ]
    taken += [PIL.Image.fromarray(array.astype(np.uint8)) for array in arrays]
    return [*taken, *(picture.convert("L") for picture in taken)]


@pytest.mark.parametrize("name", PAIRS)
def test_an_operation_is_pillows(name: str) -> None:
    ours, theirs, magnitudes = PAIRS[name]
    changed = 0
    for picture, magnitude in itertools.product(pictures(), magnitudes):
        image = pixels_of(picture)
        image.flags.writeable = False  # and so is left alone
        found, expected = ours(image, magnitude), pixels_of(theirs(picture, magnitude))
        case = f"{name} {magnitude} of {picture.mode} {picture.size}"
        assert found.dtype == np.uint8, case
        np.testing.assert_array_equal(found, expected, err_msg=case)
        changed += not np.array_equal(found, image)
    assert changed > 3


@pytest.mark.parametrize("name", PAIRS)
def test_an_operation_takes_a_part_of_a_larger_array(name: str) -> None:
    ours, _, magnitudes = PAIRS[name]
    whole = pixels_of(samples.pictures()[0])
    part = whole[20:60, 300:350]
    for magnitude in magnitudes[-2:]:
        np.testing.assert_array_equal(
            ours(part, magnitude), ours(part.copy(), magnitude)
        )
