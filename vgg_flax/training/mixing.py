"""What training makes of a batch's images on the device: erased, mixed, cut.

What is drawn follows from the step and an example's place in the global batch, and an
image's partner is the one before it there: so neither the number of devices nor that of
micro-batches changes anything.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from vgg_flax import parallel
from vgg_flax.config import RegularizationConfig
from vgg_flax.images.preprocessing import Preprocessing

Batch = dict[str, Any]  # of arrays
Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # top, left, bottom, right

# Of Zhong et al. 2020, table 3: shares of the image's area, and height over width.
ERASED_AREA = (0.02, 0.33)
ERASED_ASPECT = (0.3, 3.3)
_TRIES = 10  # rectangles that are drawn, of which the first that fits is taken


def mixup(images: jax.Array, others: jax.Array, share: Any) -> jax.Array:
    """`share * images + (1 - share) * others` (Zhang et al. 2018, equation 1).

    Args:
      images: `[..., height, width, channels]`.
      others: likewise.
      share: of `images`, 0 to 1; broadcast from the last axes.

    Returns:
      Like `images`, to which it is equal, to the bit, where the share is 1, and where
      both are.
    """
    share = jnp.asarray(share, images.dtype)
    share = share.reshape((1,) * (images.ndim - share.ndim) + share.shape)
    return jnp.where(share == 1, images, others + share * (images - others))


def cutmix(
    images: jax.Array, others: jax.Array, box: Box
) -> tuple[jax.Array, jax.Array]:
    """`images` with what `others` have in a rectangle (Yun et al. 2019, equation 1).

    Args:
      images: `[..., height, width, channels]`.
      others: likewise.
      box: top, left, bottom, right: the first row, the first column, and those behind
        the last.

    Returns:
      Like `images`, and the share of their area that is left: the labels' weight.
    """
    outside = ~inside(box, *images.shape[-3:-1])
    return mixup(images, others, outside), outside.mean(dtype=images.dtype)


def inside(box: Box, height: int, width: int) -> jax.Array:
    """Which pixels are in a rectangle: bool `[height, width, 1]`."""
    top, left, bottom, right = box
    rows, columns = jnp.arange(height), jnp.arange(width)
    is_row = (rows >= top) & (rows < bottom)
    is_column = (columns >= left) & (columns < right)
    return (is_row[:, None] & is_column[None])[..., None]


def cut_box(key: jax.Array, area: Any, height: int, width: int) -> Box:
    """CutMix's rectangle: of the image's aspect, its centre anywhere.

    Args:
      key: of the draw.
      area: its share of the image, of which the part outside is lost.
      height: of the image.
      width: of the image.
    """
    keys = jax.random.split(key)
    ends: list[tuple[jax.Array, jax.Array]] = []
    for key, size in zip(keys, (height, width), strict=True):
        centre = jax.random.randint(key, (), 0, size)
        half = (0.5 * jnp.sqrt(area) * size).astype(jnp.int32)
        ends.append((jnp.maximum(centre - half, 0), jnp.minimum(centre + half, size)))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


def erased_box(key: jax.Array, height: int, width: int) -> Box:
    """Random erasing's rectangle (Zhong et al. 2020, algorithm 1); empty: none fits."""
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    low, high = (math.log(x) for x in ERASED_ASPECT)
    area = jax.random.uniform(
        area_key, (_TRIES,), minval=ERASED_AREA[0], maxval=ERASED_AREA[1]
    )
    area = area * height * width
    aspect = jnp.exp(jax.random.uniform(aspect_key, (_TRIES,), minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    h, w = (jnp.where(fits[first], sizes[first], 0) for sizes in (heights, widths))
    rooms = jnp.stack([height - h, width - w]) + 1
    top, left = jax.random.randint(place_key, (2,), 0, rooms)
    return top, left, top + h, left + w


def random_erasing(
    key: jax.Array, images: jax.Array, index: jax.Array, fill: Any, probability: float
) -> jax.Array:
    """Images of which some have a rectangle erased, each with a probability.

    Args:
      key: of the step.
      images: `[batch, height, width, channels]`.
      index: `[batch]`, their places in the global batch.
      fill: what is there instead, a value a channel.
      probability: 0 to 1.
    """

    def erase(image: jax.Array, index: jax.Array) -> jax.Array:
        whether, where = jax.random.split(jax.random.fold_in(key, index))
        box = erased_box(where, *image.shape[:2])
        is_erased = inside(box, *image.shape[:2]) & (
            jax.random.uniform(whether) < probability
        )
        return jnp.where(is_erased, jnp.asarray(fill, image.dtype)[None, None], image)

    return jax.vmap(erase)(images, index)


def targets(
    labels: jax.Array,
    classes: int,
    dtype: Any,
    smoothing: float = 0.0,
    weights: tuple[float, ...] = (),
) -> jax.Array:
    """What the log probabilities of an example are weighted with, for its loss.

    `weights[c] * ((1 - smoothing) * [c is the label] + smoothing / classes)`: of a
    mixture of examples, the mixture of theirs.

    Args:
      labels: `[batch]`, integers.
      classes: how many there are.
      dtype: of the result.
      smoothing: Szegedy et al. 2016, section 7.
      weights: a factor a class, or none.

    Returns:
      `[batch, classes]`.
    """
    smooth = jax.nn.one_hot(labels, classes, dtype=dtype) * (1 - smoothing)
    smooth = smooth + smoothing / classes
    return smooth * jnp.asarray(weights, dtype)[None] if weights else smooth


@dataclasses.dataclass(frozen=True)
class Mixing:
    """What a config has of all this, for one replica's part of a batch.

    Attributes:
      config: of the run.
      preprocessing: of its pixels.
      dtype: of the images that the net is given.
    """

    config: RegularizationConfig
    preprocessing: Preprocessing
    dtype: Any

    @property
    def has_partners(self) -> bool:
        """Whether images are mixed with others."""
        return bool(self.config.mixup_alpha or self.config.cutmix_alpha)

    @property
    def has_targets(self) -> bool:
        """Whether examples have more than one label, or other weights than 1."""
        config = self.config
        return bool(self.has_partners or config.label_smoothing or config.class_weights)

    def with_partners(self, batch: Batch) -> Batch:
        """`batch` with, as `partner`, the same of the example before each, if wanted.

        That of the first is the last of the replica before, in a ring.
        """
        if not self.has_partners:
            return batch
        axis = parallel.AXIS_NAME
        count = jax.lax.axis_size(axis)
        ring = [(i, (i + 1) % count) for i in range(count)]

        def before(x: jax.Array) -> jax.Array:
            last = jax.lax.ppermute(x[-1:], axis, ring)
            return jnp.concatenate([last, x[:-1]])

        return {**batch, "partner": jax.tree.map(before, batch)}

    def __call__(self, key: jax.Array, batch: Batch) -> tuple[jax.Array, Any]:
        """The images of a batch, or of every n-th of it, and their share in them.

        Args:
          key: of the step.
          batch: with its partners.

        Returns:
          Pixels, as of `Preprocessing.pixels`, `[batch, height, width, channels]`; and
          the share of each example in its mixture, `[batch]`; None: none is mixed.
        """
        if not (self.has_partners or self.config.random_erasing):
            return self._alone(key, batch), None
        # Dropout has the key itself.
        erase_key, mix_key = jax.random.split(jax.random.fold_in(key, 1))
        images = self._alone(erase_key, batch)
        if not self.has_partners:
            return images, None
        partner = batch["partner"]
        others, mask = self._alone(erase_key, partner), partner["mask"]
        own, share = self.shares(mix_key, *images.shape[1:3])
        # Not with what is missing.
        own = jnp.where(mask[:, None, None, None], own[None], 1)
        return mixup(images, others, own), jnp.where(mask, share, 1)

    def labels(self, batch: Batch, share: Any, classes: int) -> Batch:
        """`batch` as the loss needs it: with `targets`, and the larger part's label."""
        if not self.has_targets:
            return batch
        make = functools.partial(
            targets,
            classes=classes,
            dtype=self.dtype,
            smoothing=self.config.label_smoothing,
            weights=self.config.class_weights,
        )
        label = batch["label"]
        if share is None:
            return {**batch, "targets": make(label)}
        other = batch["partner"]["label"]
        own = share[:, None]
        mixed = own * make(label) + (1 - own) * make(other)
        return {
            **batch,
            "targets": mixed,
            "label": jnp.where(share >= 0.5, label, other),
        }

    def shares(
        self, key: jax.Array, height: int, width: int
    ) -> tuple[jax.Array, jax.Array]:
        """The own image's share in each pixel, `[height, width, 1]`, and in all."""
        config, dtype = self.config, self.dtype
        which_key, share_key, box_key = jax.random.split(key, 3)
        is_cut = jax.random.bernoulli(which_key)
        if not (config.mixup_alpha and config.cutmix_alpha):
            is_cut = jnp.asarray(bool(config.cutmix_alpha))
        alpha = jnp.where(is_cut, config.cutmix_alpha, config.mixup_alpha)
        share = jax.random.beta(share_key, alpha, alpha, dtype=dtype)
        outside = ~inside(cut_box(box_key, 1 - share, height, width), height, width)
        left = outside.mean(dtype=dtype)
        own = jnp.where(is_cut, outside.astype(dtype), share)
        return own, jnp.where(is_cut, left, share)

    def _alone(self, key: jax.Array, batch: Batch) -> jax.Array:
        """The images as they are before they are mixed."""
        images = self.preprocessing.pixels(
            batch["image"], batch.get("color_shift"), self.dtype
        )
        if not self.config.random_erasing:
            return images
        return random_erasing(
            key,
            images,
            batch["index"],
            self.preprocessing.mean,
            self.config.random_erasing,
        )
