"""Image bytes -> pixels, as Pillow decodes them."""

import io

import numpy as np
import PIL.Image
import simplejpeg

from vgg_flax.errors import VGGFlaxError


class ImageError(VGGFlaxError):
    """Bytes that no decoder understands as an image."""


def decode(data: bytes, channels: int = 3) -> np.ndarray:
    """Image bytes -> uint8 `[height, width, channels]`, as Pillow decodes them.

    Grey becomes RGB by repetition, RGB becomes grey by ITU-R 601 luma, CMYK becomes
    RGB by Pillow's rule, transparency and EXIF orientation are ignored (as
    torchvision does), and of 16-bit samples the upper 8 bits are kept.

    Args:
      data: JPEG, PNG, WebP or anything else Pillow reads, by content, not name.
      channels: 1 or 3.

    Raises:
      ImageError: the bytes are empty, cut off, or no image.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(f"expected an image's bytes, not {data!r}: read the file")
    if channels == 3 and data[:3] == b"\xff\xd8\xff":
        try:  # the same pixels as Pillow, without its copies
            if simplejpeg.decode_jpeg_header(data, strict=False)[2] in (
                "YCbCr",
                "Gray",
            ):
                return simplejpeg.decode_jpeg(data, "RGB")
        except (ValueError, KeyError):  # KeyError: a header cut off
            pass  # Pillow forgives more; what it refuses is an ImageError below
    # Of an image of 90 to 180 megapixels Pillow only warns; beyond that it refuses.
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
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
        raise ImageError(
            f"cannot decode {len(data)} bytes as an image: "
            + ("no known format" if unknown else str(error))
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)
