"""The paper's test-time views (section 3.2) as data and pure functions.

A protocol is a set of `Views`; an image's posterior under it is the mean of the
softmax outputs of all the tensors that they give.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

from vgg_flax.errors import ConfigError
from vgg_flax.images import resize
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VGG

GRID = 5  # crops a side: section 3.2's "5 x 5 regular grid with 2 flips"


class Views(NamedTuple):
    """What one net sees of an image at one scale.

    Attributes:
      kind: a key of `KINDS`.
      scale: Q, the smaller side after rescaling.
      flip: whether each view's mirror is one too.
    """

    kind: str
    scale: int
    flip: bool


# Which kinds a protocol averages. All of them count the same, so that "both" is the
# mean of dense's and multi-crop's posteriors.
PROTOCOLS = {
    "center": ("center",),
    "dense": ("dense",),
    "multicrop": ("multicrop",),
    "both": ("dense", "multicrop"),
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a net's posterior of an image comes about.

    Attributes:
      name: a key of `PROTOCOLS`.
      scales: the values of Q whose posteriors are averaged.
      flip: whether center and dense average in the mirror image; multicrop always
        does.
    """

    name: str
    scales: tuple[int, ...]
    flip: bool = False

    def views(self) -> tuple[Views, ...]:
        """All that is to be averaged, with equal weights."""
        return tuple(
            Views(kind, scale, self.flip or kind == "multicrop")
            for kind in PROTOCOLS[self.name]
            for scale in self.scales
        )


def check_scales(protocol: Protocol, model: VGG, preprocessing: Preprocessing) -> None:
    """Raises ConfigError where a scale is too small for the net or its crop."""
    if not protocol.scales or len(set(protocol.scales)) < len(protocol.scales):
        raise ConfigError(
            f"scales {list(protocol.scales)}: expected different sizes, such as "
            f"{preprocessing.test_scale}"
        )
    for kind, scale, _ in protocol.views():
        smallest, what = preprocessing.crop_size, "the net's crop"
        if kind == "dense":
            smallest, what = model.smallest_image, "the smallest image the net takes"
        if scale < smallest:
            raise ConfigError(
                f"scale {scale} is smaller than {what}, {smallest} pixels; "
                f"use {smallest} or more with protocol {protocol.name}"
            )


def take(
    views: Views, image: np.ndarray, preprocessing: Preprocessing
) -> list[np.ndarray]:
    """The tensors that `views` has of a decoded image, not yet normalised.

    Args:
      views: which.
      image: uint8 `[height, width, channels]`.
      preprocessing: the net's own.

    Returns:
      uint8 arrays `[h, w, channels]`, each followed by its mirror if `views.flip`.
    """
    taken = KINDS[views.kind](image, views.scale, preprocessing)
    if not views.flip:
        return taken
    return [view for one in taken for view in (one, resize.mirror(one))]


def _center(
    image: np.ndarray, scale: int, preprocessing: Preprocessing
) -> list[np.ndarray]:
    return [dataclasses.replace(preprocessing, test_scale=scale).test_view(image)]


def _dense(
    image: np.ndarray, scale: int, preprocessing: Preprocessing
) -> list[np.ndarray]:
    return [preprocessing.rescale(image, scale)]


def _multicrop(
    image: np.ndarray, scale: int, preprocessing: Preprocessing
) -> list[np.ndarray]:
    image, crop = preprocessing.rescale(image, scale), preprocessing.crop_size
    return [
        image[top : top + crop, left : left + crop]
        for top in box_starts(image.shape[0], crop)
        for left in box_starts(image.shape[1], crop)
    ]


KINDS = {"center": _center, "dense": _dense, "multicrop": _multicrop}


def box_starts(side: int, crop: int) -> tuple[int, ...]:
    """Where the crops of the grid begin: `round(i * (side - crop) / 4)`, i = 0..4.

    Python's round of the exact quarter: halves go to the even pixel.
    """
    return tuple(round(i * (side - crop) / (GRID - 1)) for i in range(GRID))


def bucket(height: int, width: int) -> tuple[int, int]:
    """The padded size at which an uncropped image goes through the net.

    Each side rounds up to a multiple of an eighth of the power of two below it, and
    of 32: eight sizes for each doubling, at most 12.5% of padding a side, beyond 256
    pixels. At one scale the smaller side is fixed, so that a data set whose longest
    image is r times as long as wide compiles at most `2 * (8 * log2(r) + 2)` shapes.
    """
    return _rounded(height), _rounded(width)


def _rounded(side: int) -> int:
    step = max(32, 2 ** (side.bit_length() - 1) // 8)
    return -(-side // step) * step


def log_mean(log_posteriors: Sequence[np.ndarray]) -> np.ndarray:
    """The logarithm of the mean of posteriors that are given as logarithms.

    Stays finite where the posteriors themselves would underflow.

    Args:
      log_posteriors: arrays of one shape, such as `[classes]`.

    Returns:
      float64 of that shape.
    """
    stacked = np.asarray(log_posteriors, np.float64)
    total = np.asarray(scipy.special.logsumexp(stacked, axis=0))
    return total - np.log(len(stacked))
