"""`load`: a trained net with its variables and the pixels that belong to them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import struct

from vgg_flax import storage
from vgg_flax.data import imagenet
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VGG  # `model` is an attribute below
from vgg_flax.runs import checkpoint
from vgg_flax.weights import WeightsError, checksum, fetch
from vgg_flax.weights.containers import formats
from vgg_flax.weights.lineages import mapping, metadata


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
    preprocessing: Preprocessing = struct.field(pytree_node=False)
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
          ValueError: images of another rank or channel count, or too small.
        """
        images = jnp.asarray(images)
        self.model.check(images)
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
      path_or_name: a run's --workdir (or its `checkpoints`, or a step's folder in
        that), a file, "vgg16", "timm/vgg16.tv_in1k", a URL.
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
    if dtype is not None:
        _check_dtype(dtype)
    only_files = {
        "variant": variant,
        "num_classes": num_classes,
        "preprocessing": preprocessing,
        "include_top": None if include_top else False,
    }
    if num_classes is not None and not (
        isinstance(num_classes, int) and num_classes > 0 and include_top
    ):
        raise WeightsError(
            f"num_classes={num_classes!r}: expected a positive number"
            + ("" if include_top else ", or features without classes: leave one out")
        )
    if not str(path_or_name):
        raise WeightsError("'' is no weights; expected a file, a folder, a name, a URL")
    # etils knows schemes of its own, and not https://.
    is_url = str(path_or_name).startswith(("https://", "http://", "file://"))
    if not is_url:
        storage.check_path("weights", path_or_name)
    if not is_url and epath.Path(path_or_name).expanduser().is_dir():
        workdir, step = _find_run(epath.Path(path_or_name).expanduser(), step)
        given = [name for name, value in only_files.items() if value is not None]
        if given:
            raise WeightsError(
                f"{path_or_name} is a run, which says itself what it is: leave out "
                f"{', '.join(given)}"
            )
        return _load_checkpoint(str(path_or_name), workdir, step, dtype, sha256)
    if step != "last":
        raise WeightsError(f"{path_or_name} is a file and has no steps; step={step!r}")
    container = formats.read(fetch.fetch(str(path_or_name), sha256=sha256))
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
    return _of_file(str(path_or_name), container, found)


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


def _of_file(source: str, container: formats.Container, found: mapping.Weights) -> Net:
    """The net of a file, with the names of its classes where they are known."""
    told = metadata.read(container.metadata)
    class_names = told.class_names if told else ()
    classes = 0 if found.model.head == "none" else found.model.num_classes
    if len(class_names) != classes:
        class_names = imagenet.synsets() if classes == 1000 else ()
    return Net(
        variables=found.variables,
        model=found.model,
        variant=found.model.variant,
        preprocessing=found.preprocessing,
        class_names=class_names,
        train_scale=told.train_scale if told else None,
        source=source,
        sha256=container.sha256,
    )


def _find_run(folder: epath.Path, step: int | str) -> tuple[epath.Path, int | str]:
    """The run directory that a folder is, or is part of, and the step in it.

    Raises:
      CheckpointError: it is none; naming the weight files that it holds.
    """
    if checkpoint.exists(folder):
        return folder, step
    if folder.name.isdigit() and folder.parent.name == "checkpoints":
        if step not in ("last", int(folder.name)):
            raise checkpoint.CheckpointError(
                f"{folder} is one step, and step={step!r} another; give "
                f"{folder.parent.parent}, or leave the step out"
            )
        return folder.parent.parent, int(folder.name)
    if folder.name != "checkpoints":
        suffixes = (".safetensors", ".pth", ".bin", ".h5", ".caffemodel")
        files = sorted(str(p) for p in folder.iterdir() if p.suffix in suffixes)
        raise checkpoint.CheckpointError(
            f"{folder} has no folder 'checkpoints', so that it is no run; "
            + (f"give the file: {', '.join(files[:5])}" if files else "give a file")
        )
    return folder.parent, step


def _load_checkpoint(
    source: str, workdir: epath.Path, step: int | str, dtype: Any, sha256: str | None
) -> Net:
    found = checkpoint.load(workdir, step)
    if sha256 is not None:
        checksum.check(epath.Path(source), found.sha256, sha256)
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
        preprocessing=Preprocessing.from_dict(found.meta["preprocessing"]),
        class_names=tuple(found.meta["class_names"]),
        train_scale=_pair(found.meta["train_scale"]),
        source=source,
        sha256=found.sha256,
    )


def _check_dtype(dtype: Any) -> None:
    try:
        is_float = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise WeightsError(f"dtype={dtype!r}; expected float32, bfloat16, float64, ...")
    if jnp.dtype(dtype) == np.float64 and not jax.config.read("jax_enable_x64"):
        raise WeightsError(
            "dtype=float64 needs JAX's 64-bit mode, which is off; set the environment "
            "variable JAX_ENABLE_X64=1"
        )


def _pair(scale: list[int] | None) -> tuple[int, int] | None:
    return None if scale is None else (scale[0], scale[1])
