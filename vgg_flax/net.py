"""`load`: a trained net with its variables and the pixels that belong to them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import struct

from vgg_flax import checkpoint, config, preprocess, train_step
from vgg_flax.model import VGG  # `model` is an attribute below


class Net(struct.PyTreeNode):
    """A net ready to use. A pytree whose leaves are the variables' arrays.

    Attributes:
      variables: `params` and, with BatchNorm, `batch_stats`.
      model: the linen module; `model.apply(variables, images)`.
      variant: a key of `vgg_flax.VARIANTS`.
      preprocessing: `.test_view(image_bytes)` and `.normalize(images)`.
      class_names: in the order of the logits.
      train_scale: S of the paper, (low, high), that the net was trained at; None
        where a weight file does not tell.
      source: the file or run directory, as it was given.
      sha256: of the file; of a run's checkpoint, of its list of leaves and crcs.
    """

    variables: dict[str, Any]
    model: VGG = struct.field(pytree_node=False)
    variant: str = struct.field(pytree_node=False)
    preprocessing: preprocess.Preprocessing = struct.field(pytree_node=False)
    class_names: tuple[str, ...] = struct.field(pytree_node=False)
    train_scale: tuple[int, int] | None = struct.field(pytree_node=False, default=None)
    source: str = struct.field(pytree_node=False, default="")
    sha256: str = struct.field(pytree_node=False, default="")

    def __call__(self, images: Any) -> jax.Array:
        """Logits `[batch, classes]` of images `[batch, height, width, channels]`.

        uint8 images (what `preprocessing.test_view` gives) are normalised first;
        floats are taken as normalised already, so that `jax.grad` with respect to
        them means what it says.

        Raises:
          TypeError: images of another integer type.
        """
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            images = self.preprocessing.normalize(images, dtype=self.model.param_dtype)
        elif not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(
                f"images have dtype {images.dtype}; expected uint8 (0 to 255), or "
                "floats from net.preprocessing.normalize"
            )
        logits: Any = self.model.apply(self.variables, images)
        return logits


def load(workdir: epath.PathLike, step: int | str = "last") -> Net:
    """The net that a training run left in `workdir`.

    Args:
      workdir: the run's --workdir.
      step: "last", "best" (on the validation split) or a number.

    Raises:
      CheckpointError: there is no such step, or it is damaged.
    """
    found = checkpoint.load(workdir, step)
    settings = config.from_dict(found.meta["config"])
    # Outside a mapped step there is no axis to take statistics over.
    net = train_step.make_model(
        dataclasses.replace(settings.model, batch_norm_across_replicas=False)
    )
    return Net(
        variables=jax.tree.map(jnp.asarray, found.variables),
        model=net,
        variant=found.meta["variant"],
        preprocessing=preprocess.Preprocessing.from_dict(found.meta["preprocessing"]),
        class_names=tuple(found.meta["class_names"]),
        train_scale=(
            settings.data.train_scale if settings.data.train_view == "paper" else None
        ),
        source=str(workdir),
        sha256=found.sha256,
    )
