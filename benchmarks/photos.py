"""Folders of images that every contender reads, made of what scikit-learn ships."""

import pathlib
from typing import Any

import numpy as np
import PIL.Image
import sklearn.datasets

from vgg_flax.data import imagenet
from vgg_flax.data.digits import NUM_TRAIN


def write(folder: pathlib.Path, width: int, height: int, count: int) -> pathlib.Path:
    """`train` and `test` of `count` JPEGs each, in folders of two ImageNet classes.

    Parts of two photos, each another, enlarged to `width` x `height`; quality 90.
    """
    root = folder / f"photos-{width}x{height}-{count}"
    if root.exists():
        return root
    photos = [PIL.Image.fromarray(x) for x in _photos()]
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(count):
            label = i % 2
            path = root / split / imagenet.synsets()[label] / f"{i:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo = photos[label]
            part = rng.uniform(0.6, 1.0) * min(
                photo.width / width, photo.height / height
            )
            w, h = int(width * part), int(height * part)
            left = int(rng.integers(0, photo.width - w + 1))
            top = int(rng.integers(0, photo.height - h + 1))
            photo.resize(
                (width, height),
                PIL.Image.Resampling.BICUBIC,
                box=(left, top, left + w, top + h),
            ).save(path, quality=90)
    return root


def write_digits(folder: pathlib.Path, side: int = 32) -> pathlib.Path:
    """scikit-learn's 1,797 digits, drawn over parts of two photos: RGB JPEGs.

    `train` has 1,437, `test` the others, which other people wrote.
    """
    root = folder / f"digits-{side}"
    if root.exists():
        return root
    digits: Any = sklearn.datasets.load_digits()
    rng, photos = np.random.default_rng(0), _photos()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "train" if i < NUM_TRAIN else "test"
        path = root / split / str(label) / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        ink = PIL.Image.fromarray((image * 15.9).astype(np.uint8))
        ink = np.asarray(ink.resize((side, side)), np.float32)[..., None] / 255
        photo = photos[rng.integers(2)]
        top, left = (int(rng.integers(0, n - side)) for n in photo.shape[:2])
        below = photo[top : top + side, left : left + side] * 0.5
        color = rng.uniform(150, 255, 3)
        pixels = below * (1 - ink) + color * ink
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(path, quality=92)
    return root


def _photos() -> list[np.ndarray]:
    """Two photos of 427 x 640 pixels."""
    return sklearn.datasets.load_sample_images().images
