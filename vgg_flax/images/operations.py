"""What augmentation does to an image's pixels: geometry, tone, colour, sharpness.

All take an image, uint8 `[height, width, C]` with C 1 (grey) or 3 (RGB), and return
such a one; theirs is left alone, and is what they return where nothing changes. Pixels
are those that torchvision's functions of these names give of a Pillow picture: sampled
from the nearest, black where there was nothing, fractions cut off where Pillow does.
"""

import math
from collections.abc import Callable

import numpy as np
import PIL.Image

_VALUES = np.arange(256, dtype=np.uint8)


def shear_x(image: np.ndarray, slope: float) -> np.ndarray:
    """Row y, counted from the top, moves `slope * y` to the left."""
    return _affine(image, (1.0, slope, 0.0, 0.0, 1.0, 0.0))


def shear_y(image: np.ndarray, slope: float) -> np.ndarray:
    """Column x, counted from the left, moves `slope * x` up."""
    return _affine(image, (1.0, 0.0, 0.0, slope, 1.0, 0.0))


def translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
    """Moved to the right, by whole pixels: the fraction is cut off."""
    moved, by = np.zeros_like(image), int(pixels)
    if by >= 0:
        moved[:, by:] = image[:, : max(0, image.shape[1] - by)]
    else:
        moved[:, :by] = image[:, -by:]
    return moved


def translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
    """Moved down, by whole pixels: the fraction is cut off."""
    return translate_x(image.swapaxes(0, 1), pixels).swapaxes(0, 1)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turned about its centre against the clock; what was outside is black."""
    return _pixels(_picture(image).rotate(degrees, fillcolor=0))


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Each value times `factor`; 0: black."""
    return _look_up(image, _blend(np.zeros_like(_VALUES), _VALUES, factor))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """The distance of each value to the mean brightness times `factor`; 0: grey."""
    brightness = _brightness(image)
    mean = int(int(brightness.sum()) / brightness.size + 0.5)
    return _look_up(image, _blend(np.full_like(_VALUES, mean), _VALUES, factor))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """The distance of each pixel to its own grey times `factor`; 0: no colour."""
    if image.shape[2] == 1:
        return image
    import cv2

    grey = cv2.cvtColor(_brightness(image), cv2.COLOR_GRAY2RGB)
    return _blend(grey, image, factor)


def adjust_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """The hue turned by the share `turn`, -0.5 to 0.5, of the circle; by 256 steps."""
    if image.shape[2] == 1:
        return image
    hsv = np.array(_picture(image).convert("HSV"))
    hsv[..., 0] += np.uint8(int(turn * 255) % 256)
    return _pixels(PIL.Image.fromarray(hsv, "HSV").convert("RGB"))


def adjust_sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """The distance of each value to that of a smoothed image times `factor`.

    Smooth is the mean of 3 x 3 pixels, the middle one five times, of 13 values: none
    lies halfway between two levels, so OpenCV's rounding is Pillow's, in a sixth of the
    time. Pixels at the border stay.
    """
    import cv2

    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(image, -1, kernel / 13).reshape(image.shape)
    for border in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):
        smooth[border] = image[border]
    return _blend(smooth, image, factor)


def posterize(image: np.ndarray, bits: float) -> np.ndarray:
    """Of each value's 8 bits the uppermost `bits`, the others 0."""
    return image & np.uint8(256 - (1 << (8 - int(bits))))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Values from `threshold`, 0 to 255, on are inverted."""
    inverted = image >= np.uint8(math.ceil(threshold))
    return image ^ np.negative(inverted.view(np.uint8))  # with 255, where they are


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Each channel stretched: its darkest value becomes 0, its brightest 255."""
    return _by_channel(image, _stretched)


def equalize(image: np.ndarray) -> np.ndarray:
    """Each channel's values spread so that all become about equally frequent."""
    return _by_channel(image, _spread)


def _stretched(channel: np.ndarray) -> np.ndarray:
    low, high = int(channel.min()), int(channel.max())
    if low == high:
        return _VALUES
    scale = 255.0 / (high - low)
    return np.clip((_VALUES * scale - low * scale).astype(int), 0, 255)


def _spread(channel: np.ndarray) -> np.ndarray:
    counts = np.array(PIL.Image.fromarray(channel).histogram())
    below = np.cumsum(counts) - counts
    # In steps of what is darker than the brightest value that there is, over 255.
    step = int(below[np.flatnonzero(counts)[-1]]) // 255
    return np.minimum((step // 2 + below) // step, 255) if step else _VALUES


def _affine(image: np.ndarray, inverse: tuple[float, ...]) -> np.ndarray:
    """Whose pixel (x, y) is the image's at `inverse`, two rows of three, of it."""
    picture = _picture(image)
    affine = PIL.Image.Transform.AFFINE
    return _pixels(picture.transform(picture.size, affine, inverse, fillcolor=0))


def _blend(other: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """`other + factor * (image - other)`, cut off, within 0 to 255.

    By Pillow, which does this value by value: so as of one grey picture, which it need
    not pack and unpack.
    """
    rows = (image.shape[0], -1)
    pictures = [PIL.Image.fromarray(x.reshape(rows)) for x in (other, image)]
    return np.asarray(PIL.Image.blend(*pictures, factor)).reshape(image.shape)


def _by_channel(
    image: np.ndarray, make_table: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Each channel's values looked up in the table that is made of it."""
    import cv2

    channels = cv2.split(image)
    tables = [make_table(channel).astype(np.uint8) for channel in channels]
    changed = [_look_up(*both) for both in zip(channels, tables, strict=True)]
    return cv2.merge(changed).reshape(image.shape)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """`table[image]`, of uint8, by OpenCV: NumPy takes twice as long and more."""
    import cv2

    return cv2.LUT(image, table).reshape(image.shape)


def _brightness(image: np.ndarray) -> np.ndarray:
    """uint8 `[height, width]`: ITU-R 601's luma, as Pillow rounds it."""
    return np.asarray(_picture(image).convert("L"))


def _picture(image: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _pixels(picture: PIL.Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels
