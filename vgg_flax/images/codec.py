"""Image bytes -> pixels, as Pillow decodes them."""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
import PIL.Image
import simplejpeg

from vgg_flax import storage
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


Image = bytes | str | os.PathLike[str] | PIL.Image.Image | np.ndarray


def open_image(image: Image, channels: int = 3) -> np.ndarray:
    """An image, however it is given -> uint8 `[height, width, channels]`.

    Args:
      image: a path, encoded bytes, a picture of Pillow's, or uint8 `[height, width]`
        (grey) or `[height, width, 1 or 3]`; all become what `decode` makes of bytes.
      channels: 1 or 3.

    Raises:
      ImageError: there is no such file, it is no image, or an array of other values.
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            return decode(read(image), channels)
        except ImageError as error:
            raise ImageError(f"{os.fspath(image)}: {error}") from error
    if isinstance(image, PIL.Image.Image):
        with enough_memory(), _pillows_errors():
            return _pixels(image, channels)
    if not isinstance(image, np.ndarray):
        return decode(image, channels)
    count = image.shape[2] if image.ndim == 3 else 1
    is_image = image.ndim in (2, 3) and count in (1, 3) and image.size
    if image.dtype != np.uint8 or not is_image:
        raise ImageError(
            f"an array of {image.dtype} of shape {image.shape}; expected uint8, 0 to "
            "255, [height, width] or [height, width, 1 or 3]"
        )
    if count == channels:
        return image.reshape(*image.shape[:2], channels)
    grey_or_rgb = image.reshape(image.shape[:2]) if count == 1 else image
    return _pixels(PIL.Image.fromarray(grey_or_rgb), channels)


def read(path: str | os.PathLike[str]) -> bytes:
    """What is in a file; raises ImageError, without its name, where there is none."""
    try:
        return storage.expanded(path).read_bytes()
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error


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
    with _pillows_errors(), PIL.Image.open(io.BytesIO(data)) as image:
        return _pixels(image, channels)


@contextlib.contextmanager
def _pillows_errors() -> Iterator[None]:
    """Raises ImageError for what Pillow raises, which decodes when it is asked to."""
    try:
        yield
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


def _pixels(image: PIL.Image.Image, channels: int) -> np.ndarray:
    check_pixels(image.height, image.width)
    if image.mode.startswith("I"):  # 16 bits a sample, in 16 or 32
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # else Pillow warns of palettes
        image = image.copy()
        del image.info["transparency"]
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)
