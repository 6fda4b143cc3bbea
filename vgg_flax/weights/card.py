"""The model card: what a net is besides its variables, and its JSON.

A checkpoint's `meta` holds that JSON, as does the metadata of the weight files that we
write (`lineages.metadata`); a loaded `Net` is a card and its variables.
"""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VGG, variant_name
from vgg_flax.runs.leaves import Checkpoint, CheckpointError
from vgg_flax.weights import WeightsError

# What flax and JAX raise for settings that no net can have, and dicts for lacking keys.
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What a net is besides its variables.

    Attributes:
      model: the linen module; `model.apply(variables, images)`.
      preprocessing: the pixels that belong to it.
      class_names: in the order of the logits; empty where they have no names.
      train_scale: S of the paper, (low, high), that the net was trained at; None
        where that is not known, or the training views had none.
      source: the file or run directory that its variables are of, as it was given
        (a URL as `urls.shown`); empty for a net that was made here.
      sha256: of that file; of a run's checkpoint, of its list of leaves and crcs.
      objective: what it was trained on, by name.
      has_classes: whether the outputs are scores of classes; an objective of one's
        own may have others.
      ingredients: of a soup: the nets whose mean it is, each in words.
    """

    model: VGG
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    train_scale: tuple[int, int] | None = None
    source: str = ""
    sha256: str = ""
    objective: str = "classification"
    has_classes: bool = True
    ingredients: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """A key of `VARIANTS`, where `model.variant` may be a letter of the paper."""
        return variant_name(self.model.variant)

    def no_classes(self) -> str | None:
        """Why the outputs are no scores of classes; None: they are."""
        if self.model.until is not None:
            return f"{self.source} ends with {self.model.until}, and has no classes"
        if self.model.head == "none":
            return f"{self.source} has features only, and no classes"
        if not self.has_classes:
            return (
                f"{self.source} was trained on the objective {self.objective!r}, whose "
                "outputs are no classes"
            )
        return None

    def with_sizes(self, crop_size: int | None, test_scale: int | None) -> "ModelCard":
        """The card with sizes that are given instead of its own.

        Args:
          crop_size: the side of the test view, in pixels; None: the card's.
          test_scale: Q, the smaller side of the image of which that is the centre;
            None: the card's, or the crop size where that is another than the card's.

        Raises:
          WeightsError: not positive, a crop larger than the scale, or smaller than
            the net can take.
        """
        check_sizes(crop_size, test_scale)
        if crop_size is None and test_scale is None:
            return self
        own, smallest = self.preprocessing, self.model.smallest_image
        crop = own.crop_size if crop_size is None else int(crop_size)
        if test_scale is None:
            test_scale = own.test_scale if crop == own.crop_size else crop
        if crop < smallest:
            raise WeightsError(
                f"crop_size={crop} (--crop-size) is smaller than the net can take; "
                f"expected at least {smallest} pixels"
            )
        check_sizes(crop, test_scale)
        sizes = {"crop_size": crop, "test_scale": int(test_scale)}
        sized = dataclasses.replace(own, **sizes)
        return dataclasses.replace(self, preprocessing=sized)

    def identity(self) -> dict[str, Any]:
        """What results say of the net they are of, JSON-like: whose, and which."""
        return {"source": self.source, "sha256": self.sha256, "variant": self.variant}

    def to_json(self) -> dict[str, Any]:
        """JSON-like; what `from_json` reads, in files of earlier versions too."""
        trained = {"objective": self.objective, "has_classes": self.has_classes}
        return {
            "variant": self.variant,
            "model": self.model.settings,
            "preprocessing": self.preprocessing.to_dict(),
            "class_names": list(self.class_names),
            "train_scale": self.train_scale and list(self.train_scale),
            "source": self.source,
            "source_sha256": self.sha256,
            # What was trained on classes says so by silence, as it always has.
            **(trained if self.objective != "classification" else {}),
            **({"ingredients": list(self.ingredients)} if self.ingredients else {}),
        }

    @classmethod
    def of_step(cls, saved: Checkpoint, source: str) -> "ModelCard":
        """The card of what `checkpoint.load(source)` gave.

        Raises:
          CheckpointError: it does not say what its net is.
        """
        try:
            card = cls.from_json(saved.meta)
        except ValueError as error:
            raise CheckpointError(
                f"step {saved.step} of {source} does not say what its net is: {error}; "
                "use another step, or copy it anew"
            ) from error
        return dataclasses.replace(card, source=source, sha256=saved.sha256)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ModelCard":
        """The inverse of `to_json`; other keys are left alone.

        Args:
          values: `variant`, `source`, `source_sha256`, `objective`, `has_classes` and
            `ingredients` may be missing, as may settings of the model and the
            preprocessing that are younger than a file.

        Raises:
          ValueError: a value is missing, or cannot be what it should be.
        """
        try:
            card = cls(
                model=_model(values["model"]),
                preprocessing=Preprocessing.from_dict(values["preprocessing"]),
                class_names=_texts("class_names", values["class_names"]),
                train_scale=_train_scale(values["train_scale"]),
                source=str(values.get("source", "")),
                sha256=str(values.get("source_sha256", "")),
                objective=str(values.get("objective", "classification")),
                has_classes=bool(values.get("has_classes", True)),
                ingredients=_texts("ingredients", values.get("ingredients", ())),
            )
            if variant_name(values.get("variant", card.variant)) != card.variant:
                raise ValueError(f"{values['variant']!r}, and a {card.variant!r} in it")
        except _DAMAGED as error:
            raise ValueError(f"this is no model card: {error!r:.200}") from error
        return card


def check_sizes(crop_size: int | None, test_scale: int | None) -> None:
    """Raises WeightsError for sizes of a test view that no net can have."""
    for name, size in (("crop_size", crop_size), ("test_scale", test_scale)):
        is_count = isinstance(size, numbers.Integral) and not isinstance(size, bool)
        if size is not None and not (is_count and size > 0):
            raise WeightsError(
                f"{name}={size!r} (--{name.replace('_', '-')}); expected a whole "
                "number of pixels above 0, such as 224"
            )
    if crop_size is not None and test_scale is not None and crop_size > test_scale:
        raise WeightsError(
            f"crop_size={crop_size} (--crop-size) is larger than test_scale="
            f"{test_scale} (--test-scale), of which it is the centre; raise that to "
            f"{crop_size}, or lower the crop"
        )


def leaf_shapes(net: VGG) -> dict[str, tuple[int, ...]]:
    """The shape of each of `net`'s leaves by its path; nothing is computed."""
    side = net.smallest_image
    images = jax.ShapeDtypeStruct((1, side, side, net.in_channels), net.param_dtype)
    variables: Any = jax.eval_shape(net.init, jax.random.key(0), images)
    flat: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def _model(settings: dict[str, Any]) -> VGG:
    fc6, fc7 = settings["fc_widths"]
    net = VGG(**{**settings, "fc_widths": (fc6, fc7)})
    if not jnp.issubdtype(jnp.dtype(net.dtype), jnp.floating):
        raise ValueError(f"dtype {net.dtype!r}")
    # A damaged setting fails here. As float32: JAX's 64-bit mode may be off.
    leaf_shapes(net.clone(dtype="float32"))
    return net


def _texts(name: str, texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, (list, tuple)):
        raise TypeError(f"{name} {texts!r}")
    return tuple(map(str, texts))


def _train_scale(scale: list[int] | None) -> tuple[int, int] | None:
    if scale is None:
        return None
    if not isinstance(scale, (list, tuple)):
        raise TypeError(f"train_scale {scale!r}")
    low, high = map(int, scale)
    return low, high
