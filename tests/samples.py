"""The real images that the tests have: scikit-learn's photos and digits, read once."""

import functools
from typing import Any

import numpy as np
import PIL.Image
import sklearn.datasets


@functools.cache
def photos() -> tuple[np.ndarray, np.ndarray]:
    """A temple and a flower, `[427, 640, 3]` uint8, which nobody can write to."""
    temple, flower = map(np.asarray, sklearn.datasets.load_sample_images()["images"])
    for photo in (temple, flower):
        photo.flags.writeable = False
    return temple, flower


def pictures() -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """`photos` as Pillow has them."""
    temple, flower = map(PIL.Image.fromarray, photos())
    return temple, flower


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images `[1797, 8, 8]`, 0 to 16, and labels `[1797]`; TFDS' test is the last 360.

    Nobody can write to them either.
    """
    data: Any = sklearn.datasets.load_digits()
    images, labels = data["images"], data["target"]
    for array in (images, labels):
        array.flags.writeable = False
    return images, labels
