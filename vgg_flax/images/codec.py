"""Image bytes -> pixels, as Pillow decodes them."""

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from typing import Any

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
ORIENTATIONS = ("ignore", "exif")
_EXIF = b"Exif\0\0"  # before the block, in some formats
_ORIENTATION, _SHORT = 0x0112, 3  # a tag and a type in it
_BITS, _SAMPLE_FORMAT = 258, 339  # TIFF's


def open_image(
    image: Image, channels: int = 3, orientation: str = "ignore"
) -> np.ndarray:
    """An image, however it is given -> uint8 `[height, width, channels]`.

    Args:
      image: a path, encoded bytes, a picture of Pillow's, or uint8 `[height, width]`
        (grey) or `[height, width, 1 or 3]`, NumPy's or what NumPy takes for one; all
        become what `decode` makes of bytes.
      channels: 1 or 3.
      orientation: as of `decode`; an array has none.

    Raises:
      ImageError: there is no such file, it is no image, or an array of other values.
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            return decode(read(image), channels, orientation)
        except ImageError as error:
            raise ImageError(f"{os.fspath(image)}: {error}") from error
    if isinstance(image, PIL.Image.Image):
        with enough_memory(), _pillows_errors():
            pixels = _pixels(image, channels)
            is_turned = orientation == "exif"
            return _upright(pixels, _exif_of(image)) if is_turned else pixels
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode(image, channels, orientation)
    if not hasattr(image, "__array__"):
        raise ImageError(
            f"a {type(image).__name__}; expected a path, an image's bytes, a picture "
            "of Pillow's, or an array of uint8"
        )
    image = np.asarray(image)
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


def decode(data: bytes, channels: int = 3, orientation: str = "ignore") -> np.ndarray:
    """Image bytes -> uint8 `[height, width, channels]`, as Pillow decodes them.

    Grey becomes RGB by repetition, RGB becomes grey by ITU-R 601 luma, CMYK becomes
    RGB by Pillow's rule, transparency is ignored (as torchvision does), and of samples
    of up to 16 bits the upper 8 are kept.

    Args:
      data: JPEG, PNG, WebP or anything else Pillow reads, by content, not name.
      channels: 1 or 3.
      orientation: "exif": turned as the camera noted it; "ignore": as stored, which is
        what torchvision and ImageNet's results have.

    Raises:
      ImageError: the bytes are empty, cut off, no image, one of more than
        `MAX_PIXELS`, or one whose samples are signed, floats, or have 32 bits.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(f"expected an image's bytes, not {data!r}: read the file")
    try:
        with enough_memory():
            pixels = _decode(data, channels)
            is_turned = orientation == "exif"
            return _upright(pixels, _exif(data)) if is_turned else pixels
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


def _exif(data: bytes) -> bytes:
    """The EXIF block of an image that was decoded; empty if there is none."""
    if data[:2] != b"\xff\xd8":
        with _pillows_errors(), PIL.Image.open(io.BytesIO(data)) as image:
            return _exif_of(image)
    at = 2  # a JPEG's segments: marker, length, content; Pillow warns of broken ones
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1 : at + 2] == b"\xe1" and data[at + 4 : at + 10] == _EXIF:
            return bytes(data[at + 10 : end])
        at = end
    return b""


def _exif_of(image: PIL.Image.Image) -> bytes:
    return image.info.get("exif", b"").removeprefix(_EXIF)


def _upright(pixels: np.ndarray, exif: bytes) -> np.ndarray:
    """Turned as EXIF says; Pillow has turned TIFFs already, which hold it elsewhere."""
    number = _orientation_number(exif)
    if number >= 5:
        pixels = pixels.swapaxes(0, 1)
    if number in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if number in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation_number(exif: bytes) -> int:
    """1 to 8; 1, which is upright, where a block is empty, broken or without one."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == _ORIENTATION and kind == _SHORT and 1 <= value <= 8:
                return value
    except struct.error:  # cut off
        pass
    return 1


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
    if image.mode.startswith(("I", "F")):
        image = PIL.Image.fromarray(_upper_bits(image))
    if "transparency" in image.info:  # else Pillow warns of palettes
        image = image.copy()
        del image.info["transparency"]
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _upper_bits(image: PIL.Image.Image) -> np.ndarray:
    """The upper 8 bits of grey samples of 9 to 16, which Pillow keeps in 16 or 32."""
    tags: Any = getattr(image, "tag_v2", {})
    bits, kind = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
    samples = np.asarray(image)
    if image.mode == "F" or bits > 16 or kind != 1 or samples.min() < 0:
        raise ImageError(
            f"samples from {samples.min()} to {samples.max()}, of 32 bits, signed or "
            "floats; expected unsigned ones of at most 16 bits: save it so"
        )
    return (samples >> (bits - 8)).clip(0, 255).astype(np.uint8)
