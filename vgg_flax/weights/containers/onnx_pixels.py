"""What an ONNX graph does to its image before the first layer: an affine a channel."""

from typing import NamedTuple

import numpy as np


class Normalization(NamedTuple):
    """What the first layer is given: `scale * image + offset`, a number a channel.

    Attributes:
      scale: by the channels as they are in the image.
      offset: likewise.
      is_uint8: whether the image is 0 to 255, by its type.
      is_flipped: whether the first layer gets the channels in the other order.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    is_uint8: bool = False
    is_flipped: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether the image is given as it is."""
        same = {*self.scale} == {1.0} and {*self.offset} == {0.0}
        return same and not self.is_flipped


class Steps:
    """The steps so far, over the image's four axes in their own order."""

    def __init__(self) -> None:
        self._scale, self._offset = np.ones((1,) * 4), np.zeros((1,) * 4)
        self._flipped = ""

    def arithmetic(self, op: str, constant: np.ndarray, order: str) -> None:
        """Adds a step: Add, Sub, Mul or Div by a constant.

        Args:
          order: which of the image's axes, "0" to "3", now stands where.

        Raises:
          ValueError: why it is none of those that normalise pixels.
        """
        by = constant.astype(np.float64)
        if by.ndim > 4 or by.size > 4 or not np.isfinite(by).all():
            raise ValueError(f"takes a constant of shape {constant.shape}")
        by = by.reshape((1,) * (4 - by.ndim) + by.shape)
        by = by.transpose([order.index(axis) for axis in "0123"])
        if self._flipped:
            by = np.flip(by, int(self._flipped))
        if op in ("Mul", "Div") and not by.all():
            raise ValueError("scales pixels by zero")
        with np.errstate(all="ignore"):
            if op in ("Mul", "Div"):
                by = by if op == "Mul" else 1 / by
                self._scale, self._offset = self._scale * by, self._offset * by
            else:
                self._offset = self._offset + (by if op == "Add" else -by)
        mean = self._offset / self._scale if self._scale.all() else np.inf
        if not (np.isfinite(self._scale).all() and np.isfinite(mean).all()):
            raise ValueError("leaves nothing of the pixels")

    def flip(self, axis: str) -> None:
        """Adds a step that turns the order along an axis; raises ValueError for two."""
        if self._flipped not in ("", axis):
            raise ValueError("turns the image along another axis, too")
        self._flipped = "" if self._flipped else axis

    def along(self, axis: str, channels: int, is_uint8: bool) -> Normalization:
        """All of them, where that axis has the channels; raises ValueError if not."""
        if self._flipped not in ("", axis):
            raise ValueError("is given images that are turned")
        shape = [channels if i == int(axis) else 1 for i in range(4)]
        try:
            scale, offset = (
                np.broadcast_to(array, shape).ravel().tolist()
                for array in (self._scale, self._offset)
            )
        except ValueError as error:
            raise ValueError("is given pixels not normalised by channel") from error
        return Normalization(tuple(scale), tuple(offset), is_uint8, bool(self._flipped))
