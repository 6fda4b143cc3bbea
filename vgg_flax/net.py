"""`load`: a trained net with its variables and the pixels that belong to them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import struct

from vgg_flax import checkpoint, imagenet, preprocess
from vgg_flax.model import VGG  # `model` is an attribute below
from vgg_flax.weights import containers, fetch, mapping


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


def load(
    path_or_name: epath.PathLike,
    step: int | str = "last",
    *,
    variant: str | None = None,
    include_top: bool = True,
    num_classes: int | None = None,
    preprocessing: str | None = None,
    dtype: Any = None,
    sha256: str | None = None,
) -> Net:
    """The net in a run directory, a weight file, on the hub, or behind a URL.

    Weight files are told apart by their content and their tensors' names: safetensors,
    PyTorch (new and of 2017), Keras and flaxmodels HDF5, Caffe; the lineages are those
    of `weights.layouts`. A load is whole, or an error.

    Args:
      path_or_name: a run's --workdir (or `WORKDIR/checkpoints/STEP`), a file, "vgg16",
        "timm/vgg16.tv_in1k", a URL.
      step: of a run: "last", "best" (on the validation split) or a number.
      variant: of a file, where its names can't tell ("vgg11_lrn").
      include_top: False: the convolutions only (`head="none"`).
      num_classes: other than the weights': fc8 starts anew.
      preprocessing: of a file, a key of `weights.layouts.PIXELS`, instead of its own.
      dtype: of params and computation; None: float32, or the run's own.
      sha256: what the file's must be.

    Raises:
      VGGFlaxError: no such thing, damaged, or not the weights of a VGG.
    """
    folder = epath.Path(path_or_name).expanduser()
    if folder.is_dir():
        if folder.name.isdigit() and folder.parent.name == "checkpoints":
            folder, step = folder.parent.parent, int(folder.name)
        return _load_checkpoint(folder, step, dtype)
    path = fetch.fetch(str(path_or_name), sha256=sha256)
    container = containers.read(path)
    found = mapping.to_weights(
        container.tensors,
        sha256=container.sha256,
        metadata=container.metadata,
        variant=variant,
        include_top=include_top,
        num_classes=num_classes,
        preprocessing=preprocessing,
        dtype=dtype,
    )
    told = mapping.read_metadata(container.metadata)
    class_names = tuple(told.get("class_names", ()))
    classes = found.model.num_classes if include_top else 0
    if len(class_names) != classes:
        class_names = _default_names(classes)
    return Net(
        variables=found.variables,
        model=found.model,
        variant=found.model.variant,
        preprocessing=found.preprocessing,
        class_names=class_names,
        train_scale=_pair(told.get("train_scale")),
        source=str(path_or_name),
        sha256=container.sha256,
    )


def meta_of(net: Net) -> dict[str, Any]:
    """What a checkpoint of `net` says it is; `load` reads it back."""
    return {
        "variant": net.variant,
        "model": net.model.settings,
        "preprocessing": dataclasses.asdict(net.preprocessing),
        "class_names": list(net.class_names),
        "train_scale": net.train_scale,
        "source": net.source,
        "source_sha256": net.sha256,
    }


def _load_checkpoint(workdir: epath.PathLike, step: int | str, dtype: Any) -> Net:
    found = checkpoint.load(workdir, step)
    settings = found.meta["model"]
    net = VGG(**{**settings, "fc_widths": tuple(settings["fc_widths"])})
    variables = jax.tree.map(jnp.asarray, found.variables)
    if dtype is not None:
        net = net.clone(dtype=str(jnp.dtype(dtype)))
        variables = jax.tree.map(lambda x: x.astype(dtype), variables)
    return Net(
        variables=variables,
        model=net,
        variant=found.meta["variant"],
        preprocessing=preprocess.Preprocessing.from_dict(found.meta["preprocessing"]),
        class_names=tuple(found.meta["class_names"]),
        train_scale=_pair(found.meta["train_scale"]),
        source=str(workdir),
        sha256=found.sha256,
    )


def _default_names(classes: int) -> tuple[str, ...]:
    if classes == len(imagenet.synsets()):
        return imagenet.synsets()
    return tuple(str(label) for label in range(classes))


def _pair(scale: list[int] | None) -> tuple[int, int] | None:
    return None if scale is None else (scale[0], scale[1])
