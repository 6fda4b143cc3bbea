"""What augmentation does to an image's pixels: geometry, tone, colour, sharpness.

All take an image, uint8 `[height, width, C]` with C 1 (grey) or 3 (RGB), and return
such a one; theirs is left alone, and is what they return where nothing changes. Pixels
are those that torchvision's functions of these names give of a Pillow picture: sampled
from the nearest, black where there was nothing, fractions cut off where Pillow does.
"""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image

_VALUES = np.arange(256, dtype=np.uint8)
_RAMP = PIL.Image.fromarray(_VALUES[None])


def shear_x(image: np.ndarray, slope: float) -> np.ndarray:
    """Row y, counted from the top, moves `slope * y` to the left."""
    height, width, channels = image.shape
    # Pillow counts from the middle of pixels, in parts of 65536.
    first, step = (math.floor(x * 65536 + 0.5) for x in (0.5 + slope / 2, slope))
    left = np.clip((first + step * np.arange(height)) >> 16, -width, width)
    black = width if slope < 0 else 0  # columns, before the image or behind it
    wide = np.zeros((height, 2 * width, channels), np.uint8)
    wide[:, black : black + width] = image
    windows = np.lib.stride_tricks.sliding_window_view(
        wide.reshape(height, -1), width * channels, axis=1
    )
    rows = windows[np.arange(height), (black + left) * channels]
    return rows.reshape(image.shape)


def shear_y(image: np.ndarray, slope: float) -> np.ndarray:
    """Column x, counted from the left, moves `slope * x` up."""
    return _transposed(shear_x(_transposed(image), slope))


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
    return _point_blend(image, 0, factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """The distance of each value to the mean brightness times `factor`; 0: grey."""
    import cv2

    brightness = _brightness(image)
    mean = int(cv2.sumElems(brightness)[0] / brightness.size + 0.5)
    return _point_blend(image, mean, factor)


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

    Smooth is the mean of 3 x 3 pixels, the middle one five times, of 13 values, rounded
    (none lies halfway); pixels at the border stay. Pillow takes five times as long.
    """
    import cv2

    around = cv2.boxFilter(image, cv2.CV_16U, (3, 3), normalize=False)
    around = around.reshape(image.shape) + np.uint16(4) * image
    around += np.uint16(6)
    smooth = (around // np.uint16(13)).astype(np.uint8)
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
    import cv2

    channels = cv2.split(image)
    lows, highs = (
        np.array([reduce(x) for x in channels], float)[:, None]
        for reduce in (np.min, np.max)
    )
    scale = 255.0 / np.maximum(highs - lows, 1)
    stretched = np.clip(_VALUES * scale - lows * scale, 0, 255)
    return _each(channels, np.where(lows < highs, stretched, _VALUES))


def equalize(image: np.ndarray) -> np.ndarray:
    """Each channel's values spread so that all become about equally frequent."""
    import cv2

    channels = cv2.split(image)
    counts = np.array([PIL.Image.fromarray(x).histogram() for x in channels])
    below = np.cumsum(counts, axis=1) - counts
    # A level for so many of the pixels that are darker than the brightest there are.
    step = np.max(below, axis=1, where=counts > 0, initial=0, keepdims=True) // 255
    spread = np.minimum((step // 2 + below) // np.maximum(step, 1), 255)
    return _each(channels, np.where(step, spread, _VALUES))


def _blend(other: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """`other + factor * (image - other)`, cut off, within 0 to 255.

    By Pillow, which does this value by value: so as of one grey picture, which it need
    not pack and unpack.
    """
    rows = (image.shape[0], -1)
    first, second = (PIL.Image.fromarray(x.reshape(rows)) for x in (other, image))
    return np.asarray(PIL.Image.blend(first, second, factor)).reshape(image.shape)


def _point_blend(image: np.ndarray, level: int, factor: float) -> np.ndarray:
    """As `_blend` with an image that has one level all over."""
    flat = PIL.Image.new("L", _RAMP.size, level)
    return _look_up(image, np.asarray(PIL.Image.blend(flat, _RAMP, factor)))


def _each(channels: Sequence[np.ndarray], tables: np.ndarray) -> np.ndarray:
    """The channels, each looked up in its row of `tables`, as an image again."""
    import cv2

    rows = tables.astype(np.uint8)
    return np.atleast_3d(cv2.merge([*map(_look_up, channels, rows)]))


def _transposed(image: np.ndarray) -> np.ndarray:
    """Rows and columns exchanged, in a new array; NumPy takes ten times as long."""
    import cv2

    return np.atleast_3d(cv2.transpose(image))


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
