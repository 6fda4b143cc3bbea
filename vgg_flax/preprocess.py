"""Image bytes -> training view or test view (uint8), and their normalisation.

NumPy and Pillow on the host; only `Preprocessing.normalize` runs on the device.
Everything is RGB or grey, height x width x channels.
"""

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import simplejpeg

from vgg_flax.config import DataConfig, VGGFlaxError

TrainView = Callable[[np.ndarray, np.random.Generator], np.ndarray]


# Of a rescaled image: 0.8 GB in RGB, where a photo has some hundred thousand.
_MOST_PIXELS = 1 << 28


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


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    box: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Pillow's antialiased bilinear, of the part `box` (left, top, right, bottom)."""
    if (height, width) == image.shape[:2] and box is None:
        return image
    if box is not None:  # cut first: Pillow's own `box` lets its surroundings bleed in
        image = image[box[1] : box[3], box[0] : box[2]]
    picture = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture = picture.resize((width, height), PIL.Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, image.shape[-1])


def resize_cv2(
    image: np.ndarray,
    height: int,
    width: int,
    box: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """OpenCV's bilinear, not antialiased: twice as fast, other pixels."""
    import cv2

    if box is not None:
        image = image[box[1] : box[3], box[0] : box[2]]
    resized = cv2.resize(
        np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return resized.reshape(height, width, image.shape[-1])


RESIZES = {"pillow": resize, "cv2": resize_cv2}


def isotropic_size(height: int, width: int, scale: int) -> tuple[int, int]:
    """(height, width) whose smaller side is `scale`; the larger rounds down."""
    if height <= width:
        return scale, int(scale * width / height)
    return int(scale * height / width), scale


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The middle `size` x `size` pixels; halves round to even, as torchvision's."""
    top = round((image.shape[0] - size) / 2)
    left = round((image.shape[1] - size) / 2)
    return image[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The pixels a set of weights was trained on; stored beside them.

    Attributes:
      mean: a value a channel, of pixels in [0, 1], RGB or grey.
      std: likewise.
      test_scale: Q, the smaller side after resizing.
      crop_size: the side of the centre crop.
      resize: a key of `RESIZES`: "pillow" (antialiased bilinear) or "cv2".
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_scale: int
    crop_size: int
    resize: str = "pillow"

    def __post_init__(self) -> None:
        if (
            len(self.mean) not in (1, 3)
            or len(self.std) != len(self.mean)
            or not all(math.isfinite(value) for value in (*self.mean, *self.std))
            or not all(value > 0 for value in self.std)
            or self.resize not in RESIZES
            or not 0 < int(self.crop_size) <= int(self.test_scale)
        ):
            raise ValueError(f"{self} cannot be: see its attributes")

    @classmethod
    def of(cls, config: DataConfig) -> "Preprocessing":
        """The preprocessing that a run with `config` trains and tests with."""
        return cls(config.mean, config.std, config.test_scale, config.crop_size)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `dataclasses.asdict`, from JSON too."""
        return cls(
            tuple(values["mean"]),
            tuple(values["std"]),
            values["test_scale"],
            values["crop_size"],
            values.get("resize", "pillow"),  # absent from the first checkpoints
        )

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return len(self.mean)

    def test_view(self, image: bytes | np.ndarray) -> np.ndarray:
        """Resizes the smaller side to `test_scale` and crops the centre.

        With `resize` "pillow" equal to Pillow's antialiased bilinear, pixel for pixel.

        Args:
          image: encoded bytes, or uint8 `[height, width, channels]`.

        Returns:
          uint8 `[crop_size, crop_size, channels]`.
        """
        return center_crop(self.rescale(image, self.test_scale), self.crop_size)

    def rescale(self, image: bytes | np.ndarray, scale: int) -> np.ndarray:
        """The whole image, its smaller side resized to `scale`: section 3.2's Q.

        Returns:
          uint8 `[height, width, channels]`.
        """
        if not isinstance(image, np.ndarray):
            image = decode(image, self.channels)
        elif image.ndim != 3 or image.shape[2] != self.channels:
            raise ImageError(
                f"an image of shape {image.shape}; expected uint8 [height, width, "
                f"{self.channels}]"
            )
        size = isotropic_size(image.shape[0], image.shape[1], scale)
        if size[0] * size[1] > _MOST_PIXELS:
            raise ImageError(
                f"{image.shape[1]} x {image.shape[0]} pixels become {size[1]} x "
                f"{size[0]}, more than {_MOST_PIXELS}: too long and narrow"
            )
        return RESIZES[self.resize](image, *size)

    def normalize(
        self, images: Any, color_shift: Any = None, dtype: Any = "float32"
    ) -> jax.Array:
        """`(images / 255 + color_shift - mean) / std`.

        Args:
          images: `[..., height, width, channels]`, 0 to 255, any dtype.
          color_shift: `[..., channels]`, added to pixels in [0, 1], or None.
          dtype: of the result.
        """
        pixels = jnp.asarray(images).astype(dtype) / 255
        if color_shift is not None:
            pixels = pixels + jnp.asarray(color_shift, dtype)[..., None, None, :]
        mean = np.asarray(self.mean).reshape((1,) * (pixels.ndim - 1) + (-1,))
        std = np.asarray(self.std).reshape(mean.shape)
        return (pixels - mean.astype(dtype)) / std.astype(dtype)


def make_train_view(config: DataConfig) -> TrainView:
    """The view that training takes of an image: crop, scale, flip.

    Returns:
      `view(image, rng)`: uint8 `[height, width, C]` -> `[crop_size, crop_size, C]`.
    """
    view = {"paper": _paper, "resized_crop": _resized_crop, "pad_crop": _pad_crop}
    take = view[config.train_view]

    def train_view(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        crop = take(config, image, rng)
        flip = config.flip and rng.random() < 0.5
        return np.ascontiguousarray(crop[:, ::-1] if flip else crop)

    return train_view


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
    size = isotropic_size(image.shape[0], image.shape[1], scale)
    return _random_crop(
        RESIZES[config.train_resize](image, *size), config.crop_size, rng
    )


def _resized_crop(
    config: DataConfig, image: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """torchvision's RandomResizedCrop: a random area, aspect 3/4 to 4/3, rescaled."""
    height, width = image.shape[:2]
    left, top, box_width, box_height = _random_area(config, height, width, rng)
    box = (left, top, left + box_width, top + box_height)
    side = config.crop_size
    return RESIZES[config.train_resize](image, side, side, box)


def _random_area(
    config: DataConfig, height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
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
    size = isotropic_size(image.shape[0], image.shape[1], scale)
    image, pad = RESIZES[config.train_resize](image, *size), config.padding
    padded = np.zeros((size[0] + 2 * pad, size[1] + 2 * pad, image.shape[2]), np.uint8)
    padded[pad : pad + size[0], pad : pad + size[1]] = image
    return _random_crop(padded, config.crop_size, rng)


def _random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top = rng.integers(0, image.shape[0] - size + 1)
    left = rng.integers(0, image.shape[1] - size + 1)
    return image[top : top + size, left : left + size]
