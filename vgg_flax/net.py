"""A net ready to use: its variables and its card."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VGG  # `model` is an attribute below
from vgg_flax.weights.card import ModelCard


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Net:
    """A net ready to use. A pytree whose leaves are the variables' arrays.

    Nets that differ in their arrays alone, such as two steps of a run, have one
    structure: `jit` compiles once, and `jax.tree.map` takes them together. What that
    returns is of no file: its `source`, `sha256` and `ingredients` are empty. Two nets
    are equal if they are the same object.

    Attributes:
      variables: `params` and, with BatchNorm, `batch_stats`.
      card: what the net is besides them. Its `model`, `variant`, `preprocessing`
        (`.test_view(image_bytes)`, `.normalize(images)`), `class_names`,
        `train_scale`, `source`, `sha256` and `ingredients` are attributes here too.
    """

    variables: dict[str, Any]
    card: ModelCard

    def tree_flatten_with_keys(self) -> tuple[Any, ModelCard]:
        """The variables, and what a computation depends on besides."""
        key = jax.tree_util.GetAttrKey("variables")
        unsigned = dataclasses.replace(self.card, source="", sha256="", ingredients=())
        return ((key, self.variables),), unsigned

    @classmethod
    def tree_unflatten(cls, card: ModelCard, children: Any) -> "Net":
        """The inverse, of other variables."""
        (variables,) = children
        return cls(variables, card)

    def __repr__(self) -> str:
        count = sum(jnp.size(leaf) for leaf in jax.tree.leaves(self.variables))
        known, pixels = self.model.layer_names, self.preprocessing
        return (
            f"Net({self.variant}, {count:,} params, {self.model.dtype}\n"
            f"  layers: {known[0]} to {known[-1]}\n"
            f"  test view: {pixels.crop_size} pixels of {pixels.test_scale}, mean "
            f"{_short(pixels.mean)}, std {_short(pixels.std)}\n"
            f"  source: {self.source or 'made here'}\n"
            f"  sha256: {self.sha256[:16]})"
        )

    def __call__(self, images: Any) -> jax.Array:
        """Logits `[batch, classes]` of images `[batch, height, width, channels]`.

        uint8 images (what `preprocessing.test_view` gives) are normalised first;
        floats are taken as normalised already, so that `jax.grad` with respect to
        them means what it says.

        Raises:
          TypeError: images of another integer type.
          ValueError: images of another rank or channel count, or too small.
        """
        logits: Any = self.model.apply(self.variables, self._normalized(images))
        return logits

    def features(
        self, images: Any, layers: str | Sequence[str] = "pool5"
    ) -> dict[str, jax.Array]:
        """What `layers` give, by the names given; nothing beyond them is computed.

        Args:
          images: as in a call, any size that the deepest layer can take.
          layers: one or several of `net.layers`, or torchvision's (`features.22`),
            timm's (`pre_logits.fc1`) or Keras's (`block3_conv3`, which is after its
            ReLU) names of the same.

        Returns:
          `[batch, h, w, channels]` in the computation's dtype; `fc8` and `logits` in
          the params', and of `logits` `[batch, classes]`.

        Raises:
          TypeError: images of another integer type.
          ValueError: no such layer, with the names that are nearest; images of another
            rank or channel count, or too small for a layer.
        """
        found: Any = self.model.apply(
            self.variables,
            self._normalized(images, self.model.deepest(layers)),
            layers,
            method="features",
        )
        return found

    def until(self, layer: str) -> "Net":
        """The net that ends with `layer`, which a call returns; no params beyond.

        Raises:
          ValueError: no such layer, with the names that are nearest.
        """
        last = self.model.deepest(layer)
        if last == "logits":
            return self
        model = self.model.clone(until=last)
        kept = set(model.layer_names)
        variables = {
            collection: {name: leaves for name, leaves in tree.items() if name in kept}
            for collection, tree in self.variables.items()
        }
        return self.replace(variables=variables, model=model, class_names=())

    def _normalized(self, images: Any, layer: str | None = None) -> jax.Array:
        images = jnp.asarray(images)
        self.model.check(images, layer)
        if images.dtype == jnp.uint8:
            return self.preprocessing.normalize(images, dtype=self.model.param_dtype)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(
                f"images have dtype {images.dtype}; expected uint8 (0 to 255), or "
                "floats from net.preprocessing.normalize"
            )
        return images

    def replace(self, *, variables: Any = None, **fields: Any) -> "Net":
        """A copy with other `variables`, or other fields of the card."""
        return Net(
            variables=self.variables if variables is None else variables,
            card=dataclasses.replace(self.card, **fields),
        )

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """What `features` knows, from the image on: the shape of each for a test view.

        `(h, w, channels)`; of `logits` `(classes,)`.
        """
        side, names = self.preprocessing.crop_size, self.model.layer_names
        view = jax.ShapeDtypeStruct((1, side, side, self.model.in_channels), "float32")
        apply = functools.partial(self.model.apply, method="features", layers=names)
        found: Any = jax.eval_shape(apply, self.variables, view)
        return {name: found[name].shape[1:] for name in names}

    @property
    def model(self) -> VGG:
        """The linen module; `model.apply(variables, images)`."""
        return self.card.model

    @property
    def variant(self) -> str:
        """A key of `vgg_flax.VARIANTS`."""
        return self.card.variant

    @property
    def preprocessing(self) -> Preprocessing:
        """`.test_view(image_bytes)` and `.normalize(images)`."""
        return self.card.preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.card.class_names

    @property
    def train_scale(self) -> tuple[int, int] | None:
        """S of the paper, (low, high); None where a weight file does not tell."""
        return self.card.train_scale

    @property
    def objective(self) -> str:
        """What it was trained on, by name."""
        return self.card.objective

    @property
    def has_classes(self) -> bool:
        """Whether the outputs are scores of classes."""
        return self.card.has_classes

    @property
    def source(self) -> str:
        """The file or run directory, as it was given; of a URL, no secrets."""
        return self.card.source

    @property
    def sha256(self) -> str:
        """Of the file; of a run's checkpoint, of its list of leaves and crcs."""
        return self.card.sha256

    @property
    def ingredients(self) -> tuple[str, ...]:
        """Of a soup: what it is the mean of; else empty."""
        return self.card.ingredients


def _short(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
