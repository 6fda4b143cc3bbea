"""Image bytes -> training view or test view (uint8), and their normalisation.

NumPy and Pillow on the host; only `Preprocessing.normalize` runs on the device.
Everything is RGB or grey, height x width x channels.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_flax.config import DataConfig, mean_and_std
from vgg_flax.images import codec, resize
from vgg_flax.images.resize import RESIZES


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The pixels a set of weights was trained on; stored beside them.

    Attributes:
      mean: a value a channel, of pixels in [0, 1], RGB or grey.
      std: likewise.
      test_scale: Q, the smaller side after resizing.
      crop_size: the side of the centre crop.
      resize: a key of `RESIZES`: "pillow" (antialiased bilinear) or "cv2".
      orientation: of `codec.ORIENTATIONS`: "exif" turns as EXIF says.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_scale: int
    crop_size: int
    resize: str = "pillow"
    orientation: str = "ignore"

    def __post_init__(self) -> None:
        if (
            len(self.mean) not in (1, 3)
            or len(self.std) != len(self.mean)
            or not all(math.isfinite(value) for value in (*self.mean, *self.std))
            or not all(value > 0 for value in self.std)
            or self.resize not in RESIZES
            or self.orientation not in codec.ORIENTATIONS
            or not 0 < int(self.crop_size) <= int(self.test_scale)
        ):
            raise ValueError(f"{self} cannot be: see its attributes")

    @classmethod
    def of(cls, config: DataConfig) -> "Preprocessing":
        """The preprocessing that a run with `config` trains and tests with.

        ImageNet's mean and std where it has none: a run with weights to start from has
        taken theirs (`training.resumption`).
        """
        mean, std = mean_and_std(config)
        return cls(
            mean,
            std,
            config.test_scale,
            config.crop_size,
            orientation=config.orientation,
        )

    def to_dict(self) -> dict[str, Any]:
        """By attribute; without the orientation where it is none, as ever."""
        values = dataclasses.asdict(self)
        if self.orientation == "ignore":
            del values["orientation"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`, from JSON too."""
        return cls(
            tuple(values["mean"]),
            tuple(values["std"]),
            values["test_scale"],
            values["crop_size"],
            # Absent from the first checkpoints:
            values.get("resize", "pillow"),
            values.get("orientation", "ignore"),
        )

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return len(self.mean)

    def test_view(self, image: codec.Image) -> np.ndarray:
        """Resizes the smaller side to `test_scale` and crops the centre.

        With `resize` "pillow" equal to Pillow's antialiased bilinear, pixel for pixel.

        Args:
          image: a path, encoded bytes, a picture of Pillow's, or a uint8 array.

        Returns:
          uint8 `[crop_size, crop_size, channels]`.
        """
        return resize.center_crop(self.rescale(image, self.test_scale), self.crop_size)

    def rescale(self, image: codec.Image, scale: int) -> np.ndarray:
        """The whole image, its smaller side resized to `scale`: section 3.2's Q.

        Args:
          image: as of `codec.open_image`.
          scale: Q, in pixels.

        Returns:
          uint8 `[height, width, channels]`.
        """
        pixels = codec.open_image(image, self.channels, self.orientation)
        size = resize.isotropic_size(pixels.shape[0], pixels.shape[1], scale)
        with codec.enough_memory():
            return RESIZES[self.resize](pixels, *size)

    def normalize(
        self, images: Any, color_shift: Any = None, dtype: Any = "float32"
    ) -> jax.Array:
        """`(images / 255 + color_shift - mean) / std`.

        Args:
          images: `[..., height, width, channels]`, 0 to 255, any dtype.
          color_shift: `[..., channels]`, added to pixels in [0, 1], or None.
          dtype: of the result.
        """
        return self.standardize(self.pixels(images, color_shift, dtype))

    def pixels(
        self, images: Any, color_shift: Any = None, dtype: Any = "float32"
    ) -> jax.Array:
        """`images / 255 + color_shift`, see `normalize`."""
        pixels = jnp.asarray(images).astype(dtype) / 255
        if color_shift is not None:
            pixels = pixels + jnp.asarray(color_shift, dtype)[..., None, None, :]
        return pixels

    def standardize(self, pixels: jax.Array) -> jax.Array:
        """`(pixels - mean) / std`, of pixels in [0, 1]; of their dtype."""
        mean = np.asarray(self.mean).reshape((1,) * (pixels.ndim - 1) + (-1,))
        std = np.asarray(self.std).reshape(mean.shape)
        return (pixels - mean.astype(pixels.dtype)) / std.astype(pixels.dtype)
