"""The VGG nets: one linen module that walks a column of Table 1."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgg_flax.model import layers as layers_lib
from vgg_flax.model import names
from vgg_flax.model.column import Call, named_layers
from vgg_flax.model.table import PARTS, STAGES, part_of


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
      head: "fc" (fc6, fc7, fc8); "linear": fc8 alone, over fc6's window; "gap": global
        average pool and fc8 alone; "none": pool5 is the score map, and its mean the
        "logits": features only.
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
      until: one of `layer_names`: the net ends there, has no params beyond, and a
        call returns that layer's output.
      frozen: layers whose BatchNorm uses its running statistics in training, too.
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
    until: str | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self._all_names() if self.until else ()
        if self.until and self.until not in known:
            raise ValueError(f"until={self.until!r}; expected {', '.join(known)}")

    @property
    def param_dtype(self) -> jnp.dtype:
        """float32, or float64 where the computation is float64."""
        return jnp.promote_types(self.dtype, jnp.float32)

    @property
    def settings(self) -> dict[str, Any]:
        """The attributes, JSON-like; `VGG(**settings)` is this net on one device."""
        names = {field.name for field in dataclasses.fields(self)}
        names -= {"parent", "name", "batch_norm_axis", "frozen"}
        if self.until is None:  # a whole net says so by silence
            names -= {"until"}
        settings = {name: getattr(self, name) for name in sorted(names)}
        return settings | {"dtype": str(jnp.dtype(self.dtype))}

    @property
    def layer_names(self) -> tuple[str, ...]:
        """From the image on: `conv1_1`, `relu1_1`, ... `pool5`, `fc6`, ... `logits`.

        With BatchNorm `bn1_1` is between `conv1_1` and `relu1_1`; `lrn1` and, with
        `adaptive_pool`, `avgpool` are where they belong.
        """
        found = self._all_names()
        if self.until is None:
            return found if self.head == "none" else (*found, "logits")
        return found[: found.index(self.until) + 1]

    def _all_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in named_layers(self, PARTS, Call()))

    @property
    def smallest_image(self) -> int:
        """The smallest side, in pixels, of an image this net can take."""
        return self.smallest_for(self.until or "logits")

    def smallest_for(self, layer: str) -> int:
        """The smallest side, in pixels, of an image that has this layer's output."""
        if part_of(layer) in STAGES:
            return 2 ** (part_of(layer) - (not layer.startswith("pool")))
        return 32 * (1 if self.adaptive_pool else self.head_window)

    @property
    def head_window(self) -> int:
        """The side, on the last map, of what a position of the score map sees."""
        return self.fc6_window if self.head in ("fc", "linear") else 1

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
          `[batch, num_classes]`, float32 (float64 if `dtype` is); with `until`, what
          that layer gives.

        Raises:
          ValueError: images of another rank or channel count, or too small.
        """
        scores = self.score_map(
            images, train=train, example_index=example_index, sizes=sizes
        )
        if self.until is not None:
            return scores
        if sizes is None or self.adaptive_pool:
            return scores.mean(axis=(1, 2))
        extents = sizes // 32 - (self.head_window - 1)
        total = layers_lib.keep_inside(scores, extents).sum(axis=(1, 2))
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

        `h = height // 32 - head_window + 1` (1 with `adaptive_pool`); call it with
        `method="score_map"`. Of an image smaller than the batch's, as `sizes` has it,
        the positions are those of its own height and width; beyond is garbage.
        """
        self.check(images)
        return self.walk(images, train=train, example_index=example_index, sizes=sizes)

    def features(
        self, images: jax.Array, layers: str | Sequence[str]
    ) -> dict[str, jax.Array]:
        """What `layers` give: `model.apply(variables, images, layers, method=...)`.

        Beyond the deepest of them nothing is computed, and no params are needed.

        Args:
          images: as in a call, but no larger than the layers need.
          layers: names of `layer_names`, or what torchvision (`features.22`), timm
            (`pre_logits.fc1`) and Keras (`block3_conv3`, which is after its ReLU) call
            the same.

        Returns:
          By the names as they were given, `[batch, h, w, channels]` in the
          computation's dtype; `fc8` and `logits` in the params', and of `logits`
          `[batch, num_classes]`.

        Raises:
          ValueError: no such layer, with the names that are nearest; images of another
            rank or channel count, or too small for a layer.
        """
        own = self._resolve(layers)
        last = max(own.values(), key=self.layer_names.index)
        self.check(images, last)
        wanted = {"fc8" if name == "logits" else name for name in own.values()}
        _, kept = self._walk(images, PARTS, wanted, Call())
        if last == "logits":
            kept["logits"] = kept["fc8"].mean(axis=(1, 2))
        return {name: kept[layer] for name, layer in own.items()}

    def deepest(self, layers: str | Sequence[str]) -> str:
        """The last one of `layers`, which are as in `features`, by our own name.

        Raises:
          ValueError: no such layer, with the names that are nearest.
        """
        return max(self._resolve(layers).values(), key=self.layer_names.index)

    def _resolve(self, layers: str | Sequence[str]) -> dict[str, str]:
        given = (layers,) if isinstance(layers, str) else tuple(layers)
        if not given:
            raise ValueError(f"layers={layers!r}; expected names, such as 'relu3_3'")
        known = self.layer_names
        return {name: names.resolve(name, known) for name in given}

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
        x, _ = self._walk(x, parts, (), Call(train, example_index, sizes))
        is_whole = PARTS[-1] in parts and self.until is None
        return x.astype(self.param_dtype) if is_whole else x

    @nn.compact
    def _walk(
        self,
        x: jax.Array,
        parts: Sequence[int],
        wanted: Collection[str],
        call: Call,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the last layer gives, and the `wanted` ones, after which it ends."""
        x = x.astype(self.dtype)
        kept: dict[str, jax.Array] = {}
        for name, layer in named_layers(self, parts, call):
            x = layer(x)
            if name.startswith(("relu", "pool")):  # the others' are params' names
                x = self._tap(name, x)
            if name in wanted:
                kept[name] = x
            if name == self.until or (wanted and len(kept) == len(wanted)):
                break
        return x, kept

    def check(self, images: jax.Array, layer: str | None = None) -> None:
        """Raises ValueError for images of another rank or channels, or too small.

        Args:
          images: of a call.
          layer: the last one that is asked for; None: the net's.
        """
        expected = f"[batch, height, width, {self.in_channels}]"
        if images.ndim != 4 or images.shape[-1] != self.in_channels:
            raise ValueError(f"images have shape {images.shape}; expected {expected}")
        layer = layer or self.until or "logits"
        smallest = self.smallest_for(layer)
        if min(images.shape[1:3]) >= smallest:
            return
        if part_of(layer) in STAGES:
            raise ValueError(
                f"images have shape {images.shape}; {layer} needs at least {smallest} "
                "pixels a side"
            )
        raise ValueError(
            f"images have shape {images.shape}; five pools and a window of "
            f"{self.head_window} need at least {smallest} pixels a side: larger "
            "images, a smaller fc6_window, or head='gap'"
        )

    def _tap(self, name: str, x: jax.Array) -> jax.Array:
        # Not linen's `perturb`, which would make `init` return the collection.
        if self.has_variable("perturbations", name):
            x = x + self.get_variable("perturbations", name)
        self.sow(
            "intermediates", name, x, init_fn=lambda: x, reduce_fn=lambda _, new: new
        )
        return x
