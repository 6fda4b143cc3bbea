"""The views that training takes of an image: crop, scale, flip, operations, colour."""

import math
from collections.abc import Callable

import numpy as np

from vgg_flax.config import DataConfig
from vgg_flax.images import auto_augment, operations, resize
from vgg_flax.images.resize import RESIZES

TrainView = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def make_train_view(config: DataConfig) -> TrainView:
    """The view that training takes of an image: crop, scale, flip, operations, jitter.

    In this order, torchvision's; what is off draws nothing from the generator.

    Returns:
      `view(image, rng)`: uint8 `[height, width, C]` -> `[crop_size, crop_size, C]`.
    """
    view = {"paper": _paper, "resized_crop": _resized_crop, "pad_crop": _pad_crop}
    take = view[config.train_view]

    def train_view(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        crop = take(config, image, rng)
        flip = config.flip and rng.random() < 0.5
        image = resize.mirror(crop) if flip else np.ascontiguousarray(crop)
        if config.auto_augment == "trivial":
            image = auto_augment.trivial_augment(image, rng)
        elif config.auto_augment == "rand":
            image = auto_augment.rand_augment(
                image, rng, config.rand_augment_ops, config.rand_augment_magnitude
            )
        if any(config.color_jitter):
            image = color_jitter(image, rng, config.color_jitter)
        return np.ascontiguousarray(image)

    return train_view


def color_jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    amounts: tuple[float, float, float, float],
) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed at random, in random order.

    torchvision's ColorJitter.

    Args:
      image: uint8 `[height, width, C]`, C 1 or 3; grey has no saturation and no hue.
      rng: where the four are drawn, in their order, and then the order.
      amounts: b, c, s and h: factors are uniform in `[max(0, 1 - b), 1 + b]`, the hue's
        turn in `[-h, h]`, in turns; what is 0 is left out.
    """
    drawn = [rng.uniform(max(0.0, 1 - a), 1 + a) for a in amounts[:3]]
    drawn.append(rng.uniform(-amounts[3], amounts[3]))
    changes = (
        operations.adjust_brightness,
        operations.adjust_contrast,
        operations.adjust_saturation,
        operations.adjust_hue,
    )
    for place in rng.permutation(4):
        if amounts[place]:
            image = changes[place](image, drawn[place])
    return image


def color_shift(config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """A random RGB offset along the principal components: float32 `[3]`.

    Krizhevsky et al. 2012, section 4.1: `P @ (alpha * eigenvalues)` with alpha from
    N(0, color_shift^2), for pixels in [0, 1].
    """
    alpha = rng.normal(0.0, config.color_shift, 3)
    basis = np.asarray(config.color_eigenvectors)
    return (basis @ (alpha * np.asarray(config.color_eigenvalues))).astype(np.float32)


def _paper(
    config: DataConfig, image: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Section 3.1: the smaller side to S, fixed or jittered; a random crop."""
    scale = int(rng.integers(config.train_scale[0], config.train_scale[1] + 1))
    size = resize.isotropic_size(image.shape[0], image.shape[1], scale)
    return _random_crop(
        RESIZES[config.train_resize](image, *size), config.crop_size, rng
    )


def _resized_crop(
    config: DataConfig, image: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """torchvision's RandomResizedCrop: a random area, aspect 3/4 to 4/3, rescaled."""
    height, width = image.shape[:2]
    left, top, box_width, box_height = random_area(config, height, width, rng)
    box = (left, top, left + box_width, top + box_height)
    side = config.crop_size
    return RESIZES[config.train_resize](image, side, side, box)


def random_area(
    config: DataConfig, height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """The part of an image that `resized_crop` takes: left, top, width, height."""
    for _ in range(10):
        area = height * width * rng.uniform(*config.crop_area)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            return int(left), int(top), w, h
    # No luck with a very long image: the largest centred part of allowed aspect.
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def _pad_crop(
    config: DataConfig, image: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Small images (He et al. 2016, section 4.2): pad with zeros, crop at random."""
    scale = int(rng.integers(config.train_scale[0], config.train_scale[1] + 1))
    size = resize.isotropic_size(image.shape[0], image.shape[1], scale)
    image, pad = RESIZES[config.train_resize](image, *size), config.padding
    padded = np.zeros((size[0] + 2 * pad, size[1] + 2 * pad, image.shape[2]), np.uint8)
    padded[pad : pad + size[0], pad : pad + size[1]] = image
    return _random_crop(padded, config.crop_size, rng)


def _random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top = rng.integers(0, image.shape[0] - size + 1)
    left = rng.integers(0, image.shape[1] - size + 1)
    return image[top : top + size, left : left + size]
