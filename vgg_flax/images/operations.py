"""What augmentation does to an image's pixels: geometry, tone, colour, sharpness.

All take an image, uint8 `[height, width, C]` with C 1 (grey) or 3 (RGB), and return
such a one; theirs is left alone, and is what they return where nothing changes. Pixels
are those that torchvision's functions of these names give of a Pillow picture: sampled
from the nearest, black where there was nothing, fractions cut off where Pillow does.
"""

import numpy as np
import PIL.Image


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
    return _blend(np.zeros_like(image), image, factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """The distance of each value to the mean brightness times `factor`; 0: grey."""
    counts = np.bincount(_brightness(image).ravel(), minlength=256)
    mean = int(counts @ np.arange(256) / counts.sum() + 0.5)
    return _blend(np.full_like(image, mean), image, factor)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """The distance of each pixel to its own grey times `factor`; 0: no colour."""
    if image.shape[2] == 1:
        return image
    grey = np.repeat(_brightness(image)[..., None], 3, axis=2)
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
    """Values from `threshold` on are inverted."""
    values = np.arange(256, dtype=np.uint8)
    return _look_up(image, np.where(values < threshold, values, 255 - values))


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Each channel stretched: its darkest value becomes 0, its brightest 255."""
    tables = np.empty((image.shape[2], 256), np.uint8)
    for table, counts in zip(tables, _histograms(image), strict=True):
        values = np.arange(256)
        low, high = np.flatnonzero(counts)[[0, -1]]
        if low < high:
            scale = 255.0 / (high - low)
            values = np.clip((values * scale - low * scale).astype(int), 0, 255)
        table[:] = values
    return _look_up(image, tables.T)


def equalize(image: np.ndarray) -> np.ndarray:
    """Each channel's values spread so that all become about equally frequent."""
    tables = np.empty((image.shape[2], 256), np.uint8)
    for table, counts in zip(tables, _histograms(image), strict=True):
        below = np.cumsum(counts) - counts
        # The brightest value that there is comes out as 255.
        step = int(below[np.flatnonzero(counts)[-1]]) // 255
        spread = (step // 2 + below) // step if step else np.arange(256)
        table[:] = np.minimum(spread, 255)
    return _look_up(image, tables.T)


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
    rows = (image.shape[0], image.shape[1] * image.shape[2])
    pictures = [PIL.Image.fromarray(x.reshape(rows)) for x in (other, image)]
    return np.asarray(PIL.Image.blend(*pictures, factor)).reshape(image.shape)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """`table[value]` of each value; or of a table `[256, C]`, that of its channel's."""
    import cv2

    if table.ndim == 2:
        table = np.ascontiguousarray(table)[None]
    return cv2.LUT(image, table).reshape(image.shape)


def _brightness(image: np.ndarray) -> np.ndarray:
    """uint8 `[height, width]`: ITU-R 601's luma, as Pillow rounds it."""
    return np.asarray(_picture(image).convert("L"))


def _histograms(image: np.ndarray) -> np.ndarray:
    """int64 `[C, 256]`: how often each value comes in each channel."""
    return np.array(_picture(image).histogram()).reshape(-1, 256)


def _picture(image: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _pixels(picture: PIL.Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels
