"""The VGG nets: Table 1 of the paper as data, and one linen module that walks it."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgg_flax.model import layers

STAGE_WIDTHS = (64, 128, 256, 512, 512)
STAGES = range(1, 6)
PARTS = range(1, 7)  # the stages and the head, which begins with fc6
BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Variant:
    """A column of Table 1: the kernel sizes of each stage's convolutions."""

    stages: tuple[tuple[int, ...], ...]
    batch_norm: bool = False
    lrn: bool = False  # local response normalisation after conv1_1


_COLUMNS = {
    "vgg11": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "vgg13": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "vgg16_1x1": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "vgg16": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "vgg19": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
VARIANTS: dict[str, Variant] = {
    **{name: Variant(stages) for name, stages in _COLUMNS.items()},
    "vgg11_lrn": Variant(_COLUMNS["vgg11"], lrn=True),
    **{f"{name}_bn": Variant(s, batch_norm=True) for name, s in _COLUMNS.items()},
}
PAPER_LETTERS = {
    "A": "vgg11",
    "A-LRN": "vgg11_lrn",
    "B": "vgg13",
    "C": "vgg16_1x1",
    "D": "vgg16",
    "E": "vgg19",
}


def variant_name(name: str) -> str:
    """The name in `VARIANTS` for a name or a letter of the paper ("D" -> "vgg16").

    Raises:
      ValueError: no such variant.
    """
    name = PAPER_LETTERS.get(name, name)
    if name not in VARIANTS:
        known = ", ".join([*VARIANTS, *PAPER_LETTERS])
        raise ValueError(f"variant {name!r} is not a column of Table 1; known: {known}")
    return name


def part_of(layer: str) -> int:
    """The part of the net that a layer is in: conv3_2 and bn3_2: 3; fc6 to fc8: 6."""
    match = re.match(r"[a-z]+(\d)", layer)
    assert match, layer
    return min(int(match[1]), PARTS[-1])


class VGG(nn.Module):
    """A net of Table 1, convolutional to the end.

    fc6 is a convolution of `fc6_window` pixels, fc7 and fc8 are 1x1: at 224 pixels
    that is exactly VGG, and on a larger image it is the paper's dense evaluation
    (section 3.2). Params are `conv1_1 ... conv5_4, fc6, fc7, fc8`, each with `kernel`
    (HWIO) and `bias`; `bn1_1 ...` hold `scale`, `bias` and, in `batch_stats`, `mean`
    and `var`. With `mutable="intermediates"` the activations `relu1_1 ... relu7` and
    `pool1 ... pool5` are returned by name; what a collection `perturbations` holds
    under such a name is added to that activation, for gradients with respect to it.

    Attributes:
      variant: a key of `VARIANTS`, or a letter of the paper.
      num_classes: width of fc8.
      in_channels: 1 or 3.
      width_multiplier: scales the convolutions' widths (64, 128, 256, 512, 512).
      fc_widths: widths of fc6 and fc7.
      fc6_window: side of fc6's window on the last map: 7 at 224 pixels, 1 at 32.
      head: "fc" (fc6, fc7, fc8); "gap": global average pool and fc8 alone; "none":
        pool5 is the score map, and its mean the "logits": features only.
      dropout_rate: after fc6 and fc7, in training.
      initializer: a key of `layers.INITIALIZERS`; biases start at zero.
      dtype: of the computation. Params are float32 (float64 if this is), as are
        the logits.
      conv_bias: whether convolutions have a bias (with BatchNorm it is redundant).
      pooling: "max" or "average".
      batch_norm_axis: name of the mapped axis over which BatchNorm's statistics are
        taken; None: each replica its own.
      adaptive_pool: whether pool5 is averaged into fc6's window first, as torchvision
        does at sizes other than 224 pixels, instead of the dense score map.
    """

    variant: str = "vgg16"
    num_classes: int = 1000
    in_channels: int = 3
    width_multiplier: float = 1.0
    fc_widths: tuple[int, int] = (4096, 4096)
    fc6_window: int = 7
    head: str = "fc"
    dropout_rate: float = 0.5
    initializer: str = "he"
    dtype: Any = "float32"
    conv_bias: bool = True
    pooling: str = "max"
    batch_norm_axis: str | None = None
    adaptive_pool: bool = False

    @property
    def param_dtype(self) -> jnp.dtype:
        """float32, or float64 where the computation is float64."""
        return jnp.promote_types(self.dtype, jnp.float32)

    @property
    def settings(self) -> dict[str, Any]:
        """The attributes, JSON-like; `VGG(**settings)` is this net on one device."""
        names = {field.name for field in dataclasses.fields(self)}
        names -= {"parent", "name", "batch_norm_axis"}
        settings = {name: getattr(self, name) for name in sorted(names)}
        return settings | {"dtype": str(jnp.dtype(self.dtype))}

    @property
    def smallest_image(self) -> int:
        """The smallest side, in pixels, of an image this net can take."""
        slides = self.head == "fc" and not self.adaptive_pool
        return 32 * (self.fc6_window if slides else 1)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        example_index: jax.Array | None = None,
        sizes: jax.Array | None = None,
    ) -> jax.Array:
        """Logits: the spatial mean of the score map.

        Args:
          images: `[batch, height, width, in_channels]`, normalised floats, both
            sides at least `smallest_image`.
          train: batch statistics in BatchNorm, and dropout, whose key is
            `rngs={"dropout": key}`.
          example_index: `[batch]`, integers: each example's place in the global
            batch, which picks its dropout mask; `arange(batch)` if not given.
          sizes: `[batch, 2]`, integers: the height and width of each image where
            images of several sizes are padded, below and at the right, to one. The
            logits are then those of the image without its padding, whatever that
            holds. Each side at least `smallest_image`, which is not checked.

        Returns:
          `[batch, num_classes]`, float32 (float64 if `dtype` is).

        Raises:
          ValueError: images of another rank or channel count, or too small.
        """
        scores = self.score_map(
            images, train=train, example_index=example_index, sizes=sizes
        )
        if sizes is None or self.adaptive_pool:
            return scores.mean(axis=(1, 2))
        extents = sizes // 32 - (self.fc6_window - 1 if self.head == "fc" else 0)
        total = layers.keep_inside(scores, extents).sum(axis=(1, 2))
        return total / extents.prod(axis=1, keepdims=True).astype(total.dtype)

    def score_map(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        example_index: jax.Array | None = None,
        sizes: jax.Array | None = None,
    ) -> jax.Array:
        """The class scores at every position: `[batch, h, w, num_classes]`.

        `h = height // 32 - fc6_window + 1` (1 with `adaptive_pool`); call it with
        `method="score_map"`. Of an image smaller than the batch's, as `sizes` has it,
        the positions are those of its own height and width; beyond is garbage.
        """
        self.check(images)
        return self.walk(images, train=train, example_index=example_index, sizes=sizes)

    @nn.compact
    def walk(
        self,
        x: jax.Array,
        parts: Sequence[int] = PARTS,
        *,
        train: bool = False,
        example_index: jax.Array | None = None,
        sizes: jax.Array | None = None,
    ) -> jax.Array:
        """`parts` of the net, each given what the one before returned.

        Args:
          x: what the first of `parts` takes: images, or a stage's pooled map.
          parts: neighbours of `PARTS`: stages 1 to 5, and 6, the head.
          train: as in a call.
          example_index: as in a call; the head alone needs it.
          sizes: as in a call.

        Returns:
          The map after the last part's pool, or the score map.
        """
        x = x.astype(self.dtype)
        for part in parts:
            if part in STAGES:
                x = self._stage(part, x, train, sizes)
            else:
                x = self._head(x, train, example_index, sizes)
        return x

    def _stage(
        self, stage: int, x: jax.Array, train: bool, sizes: jax.Array | None
    ) -> jax.Array:
        variant = VARIANTS[variant_name(self.variant)]
        width = max(1, round(STAGE_WIDTHS[stage - 1] * self.width_multiplier))
        conv_init, _ = layers.INITIALIZERS[self.initializer]
        for i, window in enumerate(variant.stages[stage - 1], start=1):
            name = f"{stage}_{i}"
            if sizes is not None and window > 1:
                # What the layers before made of the padding (biases, say) would
                # leak into the image here. After n pools a side is a 2**n-th.
                x = layers.keep_inside(x, sizes // 2 ** (stage - 1))
            x = self._conv(f"conv{name}", width, window, conv_init, self.conv_bias)(x)
            if variant.batch_norm:
                x = self._batch_norm(f"bn{name}", train)(x)
            x = self._tap(f"relu{name}", layers.relu(x))
        if variant.lrn and stage == 1:
            x = layers.local_response_normalization(x)
        return self._tap(f"pool{stage}", layers.POOLINGS[self.pooling](x))

    def _head(
        self,
        x: jax.Array,
        train: bool,
        example_index: jax.Array | None,
        sizes: jax.Array | None,
    ) -> jax.Array:
        _, fc_init = layers.INITIALIZERS[self.initializer]
        if self.head == "fc":
            if self.adaptive_pool:
                extents = jnp.array([x.shape[1:3]]) if sizes is None else sizes // 32
                x = layers.adaptive_average_pool(x, self.fc6_window, extents)
            if example_index is None:
                example_index = jnp.arange(x.shape[0])
            for k, width in enumerate(self.fc_widths, start=6):
                window = self.fc6_window if k == 6 else 1
                x = self._conv(f"fc{k}", width, window, fc_init)(x)
                x = self._tap(f"relu{k}", layers.relu(x))
                if train and self.dropout_rate:
                    key = self.make_rng("dropout")
                    x = layers.example_dropout(x, self.dropout_rate, key, example_index)
        if self.head != "none":
            x = self._conv("fc8", self.num_classes, 1, fc_init)(x)
        return x.astype(self.param_dtype)

    def check(self, images: jax.Array) -> None:
        """Raises ValueError for images of another rank or channels, or too small."""
        expected = f"[batch, height, width, {self.in_channels}]"
        if images.ndim != 4 or images.shape[-1] != self.in_channels:
            raise ValueError(f"images have shape {images.shape}; expected {expected}")
        if min(images.shape[1:3]) < self.smallest_image:
            raise ValueError(
                f"images have shape {images.shape}; five pools and fc6's window of "
                f"{self.fc6_window} need at least {self.smallest_image} pixels a side: "
                "larger images, a smaller fc6_window, or head='gap'"
            )

    def _conv(
        self,
        name: str,
        width: int,
        window: int,
        kernel_init: layers.Initializer,
        use_bias: bool = True,
    ) -> layers.Conv:
        return layers.Conv(
            features=width,
            window=window,
            padding="VALID" if name.startswith("fc") else "SAME",
            use_bias=use_bias,
            kernel_init=kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def _batch_norm(self, name: str, train: bool) -> nn.BatchNorm:
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=BATCH_NORM_EPSILON,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            axis_name=self.batch_norm_axis,
            name=name,
        )

    def _tap(self, name: str, x: jax.Array) -> jax.Array:
        # Not linen's `perturb`, which would make `init` return the collection.
        if self.has_variable("perturbations", name):
            x = x + self.get_variable("perturbations", name)
        self.sow(
            "intermediates", name, x, init_fn=lambda: x, reduce_fn=lambda _, new: new
        )
        return x
