"""TrivialAugment and RandAugment: some of fourteen operations, drawn for an image."""

import functools
from collections.abc import Callable

import numpy as np

from vgg_flax.images import operations

BINS = 31  # of magnitudes, evenly from none to the strongest
_FACTORS = ("brightness", "color", "contrast", "sharpness")

# name -> what it does to an image at a magnitude; in torchvision's order.
OPERATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "identity": lambda image, _: image,
    "shear_x": operations.shear_x,
    "shear_y": operations.shear_y,
    "translate_x": operations.translate_x,
    "translate_y": operations.translate_y,
    "rotate": operations.rotate,
    "brightness": lambda image, m: operations.adjust_brightness(image, 1 + m),
    "color": lambda image, m: operations.adjust_saturation(image, 1 + m),
    "contrast": lambda image, m: operations.adjust_contrast(image, 1 + m),
    "sharpness": lambda image, m: operations.adjust_sharpness(image, 1 + m),
    "posterize": operations.posterize,
    "solarize": operations.solarize,
    "autocontrast": lambda image, _: operations.autocontrast(image),
    "equalize": lambda image, _: operations.equalize(image),
}
_NAMES = tuple(OPERATIONS)
# Geometry and factors go either way.
SIGNED = frozenset(_NAMES[1:6]) | frozenset(_FACTORS)
Magnitudes = dict[str, np.ndarray]  # by operation, `[BINS]`


@functools.cache
def trivial_magnitudes() -> Magnitudes:
    """TrivialAugmentWide's (Müller and Hutter 2021, table 1; torchvision's)."""
    return {
        **dict.fromkeys(("shear_x", "shear_y"), _to(0.99)),
        **dict.fromkeys(("translate_x", "translate_y"), _to(32.0)),
        "rotate": _to(135.0),
        **dict.fromkeys(_FACTORS, _to(0.99)),
        "posterize": 8 - np.round(_to(6.0)),
        "solarize": _to(255.0)[::-1],
    }


@functools.cache
def rand_magnitudes(height: int, width: int) -> Magnitudes:
    """RandAugment's (Cubuk et al. 2020; torchvision's), for images of this size."""
    return {
        **dict.fromkeys(("shear_x", "shear_y"), _to(0.3)),
        "translate_x": _to(150 / 331 * width),
        "translate_y": _to(150 / 331 * height),
        "rotate": _to(30.0),
        **dict.fromkeys(_FACTORS, _to(0.9)),
        "posterize": 8 - np.round(_to(4.0)),
        "solarize": _to(255.0)[::-1],
    }


def trivial_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One operation at a random magnitude: TrivialAugmentWide.

    Args:
      image: uint8 `[height, width, C]`, C 1 or 3.
      rng: where the operation, its magnitude and its sign are drawn, all evenly.
    """
    name, chosen = _NAMES[rng.integers(len(_NAMES))], int(rng.integers(BINS))
    return _apply(image, name, trivial_magnitudes(), chosen, rng)


def rand_augment(
    image: np.ndarray, rng: np.random.Generator, ops: int = 2, magnitude: int = 9
) -> np.ndarray:
    """`ops` operations, one after the other, all at the magnitude: RandAugment.

    Args:
      image: uint8 `[height, width, C]`, C 1 or 3.
      rng: where the operations and their signs are drawn, evenly.
      ops: how many; one may come again.
      magnitude: 0 to 30.
    """
    magnitudes = rand_magnitudes(*image.shape[:2])
    for _ in range(ops):
        name = _NAMES[rng.integers(len(_NAMES))]
        image = _apply(image, name, magnitudes, magnitude, rng)
    return image


def _apply(
    image: np.ndarray,
    name: str,
    magnitudes: Magnitudes,
    chosen: int,
    rng: np.random.Generator,
) -> np.ndarray:
    magnitude = float(magnitudes[name][chosen]) if name in magnitudes else 0.0
    negative = rng.random() < 0.5
    if negative and name in SIGNED:
        magnitude = -magnitude
    return OPERATIONS[name](image, magnitude)


def _to(strongest: float) -> np.ndarray:
    """float32 `[BINS]`, evenly from 0 to `strongest`, to the bit as `torch.linspace`.

    Which takes float32 steps from both ends to the middle, each rounded once. An ulp
    decides which level a value is cut to: half of 32 pixels are 15.999999 there, so 15.
    """
    end, places = np.float32(strongest), np.arange(BINS)
    step = np.float64(end / np.float32(BINS - 1))
    lower, upper = step * places, end - step * places[::-1]
    return np.where(places < BINS // 2, lower, upper).astype(np.float32)
