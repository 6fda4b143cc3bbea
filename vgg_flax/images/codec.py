"""Image bytes -> pixels, as Pillow decodes them."""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
import PIL.Image
import simplejpeg

from vgg_flax.errors import ConfigError, VGGFlaxError


def _limit() -> int:
    """What the environment sets, or what Pillow's own limit comes to."""
    text = os.environ.get("VGG_FLAX_MAX_PIXELS", "178956970")
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"VGG_FLAX_MAX_PIXELS={text}: expected a number of pixels")
    return int(text)


# Of an image, or of what it is rescaled to; by default half a gigabyte in RGB. What a
# header claims is looked at before anything is allocated.
MAX_PIXELS = _limit()
if 2 * (PIL.Image.MAX_IMAGE_PIXELS or MAX_PIXELS) < MAX_PIXELS:
    PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class ImageError(VGGFlaxError):
    """Bytes that no decoder understands as an image, or that are too large a one."""


def check_pixels(height: int, width: int) -> None:
    """Raises ImageError for more than `MAX_PIXELS`."""
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{width} x {height} pixels are more than {MAX_PIXELS}, which the "
            "environment variable VGG_FLAX_MAX_PIXELS sets"
        )


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Raises ImageError where an image takes more memory than there is."""
    try:
        yield
    except MemoryError as error:
        raise ImageError("it takes more memory than there is") from error


def decode(data: bytes, channels: int = 3) -> np.ndarray:
    """Image bytes -> uint8 `[height, width, channels]`, as Pillow decodes them.

    Grey becomes RGB by repetition, RGB becomes grey by ITU-R 601 luma, CMYK becomes
    RGB by Pillow's rule, transparency and EXIF orientation are ignored (as
    torchvision does), and of 16-bit samples the upper 8 bits are kept.

    Args:
      data: JPEG, PNG, WebP or anything else Pillow reads, by content, not name.
      channels: 1 or 3.

    Raises:
      ImageError: the bytes are empty, cut off, no image, or one of more than
        `MAX_PIXELS`.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(f"expected an image's bytes, not {data!r}: read the file")
    try:
        with enough_memory():
            return _decode(data, channels)
    except ImageError as error:
        what = f"cannot decode {len(data)} bytes as an image"
        raise ImageError(f"{what}: {error}") from error.__cause__


def _decode(data: bytes, channels: int) -> np.ndarray:
    if channels == 3 and data[:3] == b"\xff\xd8\xff":
        try:  # the same pixels as Pillow, without its copies
            header = simplejpeg.decode_jpeg_header(data, strict=False)
            check_pixels(int(header[0]), int(header[1]))
            if header[2] in ("YCbCr", "Gray"):
                return simplejpeg.decode_jpeg(data, "RGB")
        except (ValueError, KeyError):  # KeyError: a header cut off
            pass  # Pillow forgives more; what it refuses is an ImageError below
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            check_pixels(image.height, image.width)
            if image.mode.startswith("I"):  # 16 bits a sample, in 16 or 32
                image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image.info.pop("transparency", None)  # else Pillow warns of palettes
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except (
        OSError,
        ValueError,
        RuntimeError,  # of the AVIF decoder
        SyntaxError,
        PIL.Image.DecompressionBombError,
        PIL.Image.DecompressionBombWarning,
    ) as error:
        unknown = isinstance(error, PIL.UnidentifiedImageError)  # names an address
        raise ImageError("no known format" if unknown else str(error)) from error
    return pixels.reshape(*pixels.shape[:2], channels)
