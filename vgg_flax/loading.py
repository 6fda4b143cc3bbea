"""`load`: a trained net from a run directory, a weight file, the hub or a URL."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vgg_flax import console, errors, storage
from vgg_flax.data import imagenet
from vgg_flax.model import VARIANTS, VGG, names
from vgg_flax.net import Net
from vgg_flax.runs import checkpoint, step_folders
from vgg_flax.weights import WeightsError, checksum, fetch, urls
from vgg_flax.weights import card as card_lib
from vgg_flax.weights.card import ModelCard
from vgg_flax.weights.lineages import mapping
from vgg_flax.weights.lineages import pixels as pixels_lib


def load(
    path_or_name: epath.PathLike,
    step: int | str = "last",
    *,
    ema: bool = False,
    entry: str | None = None,
    variant: str | None = None,
    include_top: bool | None = True,
    until: str | None = None,
    num_classes: int | None = None,
    head: str | None = None,
    in_channels: int | None = None,
    preprocessing: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_size: int | None = None,
    test_scale: int | None = None,
    dtype: Any = None,
    sha256: str | None = None,
) -> Net:
    """The net in a run directory, a weight file, on the hub, or behind a URL.

    Weight files are recognised by their content and their tensors' names: safetensors,
    PyTorch (new and of 2017), Keras and flaxmodels HDF5, Caffe, ONNX; the lineages are
    those of `weights.lineages.layouts`. A load is whole, or an error.

    Args:
      path_or_name: a run's --workdir (or its `checkpoints`, or a step's folder in
        that), a file, "vgg16", "timm/vgg16.tv_in1k", a URL.
      step: of a run: "last", "best" (on the validation split) or a number. A damaged
        one is told, and is neither the last nor the best.
      ema: of a run: whether the average of the params (`config.averaging`).
      entry: of a file that holds several sets of tensors: the one meant ("model_ema").
      variant: of a file, where its names can't tell ("vgg11_lrn").
      include_top: False: the convolutions only (`head="none"`); None: with the FC
        layers, if the file has a VGG's; a head of its own is left out, and told.
      until: the layer, by a name that `features` takes, with which the net ends: a call
        returns what it gives, and no params beyond are kept.
      num_classes: other than the file's: fc8 starts anew.
      head: "fc", "gap" or "linear": a new one, with `num_classes`, whatever head the
        weights have, if any. It is drawn with the net's initialiser and seed 0.
      in_channels: 1, of weights for RGB: for grey images, conv1_1 summed over inputs.
      preprocessing: of a file, a key of `layouts.PIXELS`, instead of its own.
      mean: of a file, of pixels in [0, 1], a value a channel, instead of its own.
      std: with the mean.
      crop_size: the side of the test view in pixels, instead of the weights' own: what
        run or file says, or 32 for each of fc6's window, or else the lineage's.
      test_scale: the smaller side of the image of which that is the centre; None:
        the weights' own, or `crop_size` where that is not the weights'.
      dtype: of params and computation; None: float32, or the run's own.
      sha256: what the file's must be.

    Raises:
      VGGFlaxError: no such thing, damaged, not the weights of a VGG, or weights that
        do not tell their pixels, for which an argument is then asked; no such layer.
    """
    source = str(path_or_name)
    _check_dtype(dtype)
    _check_classes(num_classes, include_top, head)
    card_lib.check_sizes(crop_size, test_scale)
    pixels = _pixels(preprocessing, mean, std)
    of_file: Any = {"entry": entry, "variant": variant, "preprocessing": pixels}
    sizes: Any = {"crop_size": crop_size, "test_scale": test_scale}
    include_top = include_top if head is None else False
    own_classes = num_classes if head is None else None
    folder = _local_folder(source)
    if folder is not None:
        _refuse_in_runs(source, **of_file, num_classes=own_classes)
        net = _load_checkpoint(source, *_find_run(folder, step), ema, dtype, sha256)
        net = _without_head(net) if include_top is False else net
        net = Net(net.variables, net.card.with_sizes(**sizes))
    else:
        if until is not None and not _is_of_head(until):
            include_top = False
        more: Any = {"include_top": include_top, "num_classes": own_classes}
        more |= {"dtype": dtype, "sha256": sha256}
        net = _load_file(source, step, ema, **of_file, **sizes, **more)
    if head is not None and num_classes is not None:
        net = _with_new_head(net, head, num_classes)
    return _ended(_with_channels(net, in_channels), until)


def _load_file(
    source: str,
    step: int | str,
    ema: bool,
    *,
    sha256: str | None,
    entry: str | None,
    **options: Any,
) -> Net:
    """The net of a file, as `mapping.to_weights` takes the options.

    Tells what of the file was passed over.
    """
    if step != "last" or ema:
        given = "ema=True (--ema)" if ema else f"step={step!r}"
        raise WeightsError(f"{urls.shown(source)} is a file and has no steps; {given}")
    container = fetch.read(source, sha256=sha256)
    weights = mapping.to_weights(
        container.entry(entry),
        sha256=container.sha256,
        metadata=container.metadata,
        chain=container.chain,
        **options,
    )
    shown = urls.shown(source) + ("" if entry is None else f", {entry}")
    for note in weights.notes:
        console.say(errors.printable(f"{shown}: {note}"))
    return _of_file(shown, container.sha256, weights)


def _without_head(net: Net) -> Net:
    params = {
        name: leaves
        for name, leaves in net.variables["params"].items()
        if not name.startswith("fc")
    }
    return net.replace(
        variables={**net.variables, "params": params},
        model=net.model.clone(head="none"),
        class_names=(),
    )


def _with_new_head(net: Net, head: str, num_classes: int) -> Net:
    # A window that the weights' own head had, and that their test view can fill.
    window = min(net.model.fc6_window, max(1, net.preprocessing.crop_size // 32))
    sizes: Any = {"num_classes": num_classes, "fc6_window": window}
    model = net.model.clone(head=head, **sizes)

    @jax.jit
    def draw() -> dict[str, Any]:  # compiled, the rest is not drawn
        side = model.smallest_image
        images = jnp.zeros((1, side, side, model.in_channels), model.param_dtype)
        params = model.init(jax.random.key(0), images)["params"]
        return {k: v for k, v in params.items() if k.startswith("fc")}

    params = {**net.variables["params"], **draw()}
    return net.replace(variables={**net.variables, "params": params}, model=model)


def _with_channels(net: Net, in_channels: int | None) -> Net:
    """The net that takes grey images, where it takes RGB and that is asked for.

    Its conv1_1 is summed over red, green and blue: what three equal channels give,
    where the mean and the std are those of all three, too. Where they are not, the
    means of the three stand for them, and conv1_1's maps are shifted.
    """
    own = net.model.in_channels
    if in_channels in (None, own):
        return net
    if (own, in_channels) != (3, 1):
        raise WeightsError(
            f"in_channels={in_channels!r} (--in-channels): {net.source} takes {own}; "
            f"expected {own}" + (", or 1 for grey images" if own == 3 else "")
        )
    params = net.variables["params"]
    kernel = params["conv1_1"]["kernel"].sum(axis=2, keepdims=True)  # [3, 3, 1, out]
    params = {**params, "conv1_1": {**params["conv1_1"], "kernel": kernel}}
    pixels = net.preprocessing
    mean, std = ((statistics.fmean(values),) for values in (pixels.mean, pixels.std))
    console.say(f"{net.source}: conv1_1 summed over RGB, for grey images")
    return net.replace(
        variables={**net.variables, "params": params},
        model=net.model.clone(in_channels=1),
        preprocessing=dataclasses.replace(pixels, mean=mean, std=std),
    )


def _is_of_head(layer: str) -> bool:
    """Whether a layer, by anyone's name, is none of the stages' of any net."""
    bodies = (VGG(variant, head="none").layer_names for variant in VARIANTS)
    return not any(layer in (*body, *names.foreign(body)) for body in bodies)


def _ended(net: Net, until: str | None) -> Net:
    """The net that ends with the layer `until`; raises WeightsError if it has none."""
    try:
        return net if until is None else net.until(until)
    except ValueError as error:
        raise WeightsError(f"{net.source}: until={until!r}: {error}") from error


def _local_folder(source: str) -> epath.Path | None:
    """The folder that `source` is; None for a file, a name and a URL.

    Raises:
      WeightsError: it is empty.
      ConfigError: it is on storage for which a package is missing.
    """
    if not source:
        raise WeightsError("'' is no weights; expected a file, a folder, a name, a URL")
    scheme, separator, _ = source.partition("://")
    if separator and scheme not in storage.PACKAGES:  # `fetch` says what it is
        return None
    storage.check_path("weights", source)
    path = storage.expanded(source)
    return path if path.is_dir() else None


def _find_run(folder: epath.Path, step: int | str) -> tuple[epath.Path, int | str]:
    """The run directory that a folder is, or is part of, and the step in it.

    Raises:
      CheckpointError: it is none; naming the weight files that it holds.
    """
    if checkpoint.exists(folder):
        return folder, step
    number = step_folders.number_of(folder.name)
    if number is not None and folder.parent.name == "checkpoints":
        if step not in ("last", number):
            raise checkpoint.CheckpointError(
                f"{folder} is one step, and step={step!r} another; give "
                f"{folder.parent.parent}, or leave the step out"
            )
        return folder.parent.parent, number
    if folder.name != "checkpoints":
        suffixes = (".safetensors", ".pth", ".bin", ".h5", ".caffemodel", ".onnx")
        inside = [p for p in folder.iterdir() if p.suffix.lower() in suffixes]
        files = sorted(map(str, inside))
        raise checkpoint.CheckpointError(
            f"{folder} has no folder 'checkpoints', so that it is no run; "
            + (f"give the file: {', '.join(files[:5])}" if files else "give a file")
        )
    return folder.parent, step


def _refuse_in_runs(source: str, **options: Any) -> None:
    """Raises WeightsError for options, other than None, that say what a file is."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise WeightsError(
            f"{source} is a run, which says itself what it is: leave out "
            f"{', '.join(given)}"
        )


def _load_checkpoint(
    source: str,
    workdir: epath.Path,
    step: int | str,
    ema: bool,
    dtype: Any,
    sha256: str | None,
) -> Net:
    saved = checkpoint.load(workdir, step, ema=ema)
    if sha256 is not None:
        checksum.check(epath.Path(source), saved.sha256, sha256)
    card = ModelCard.of_step(saved, source)
    net = Net(jax.tree.map(jnp.asarray, saved.variables), card)
    if dtype is None:
        return net
    return net.replace(
        variables=jax.tree.map(lambda x: x.astype(dtype), net.variables),
        model=net.model.clone(dtype=str(jnp.dtype(dtype))),
    )


def _of_file(source: str, sha256: str, weights: mapping.Weights) -> Net:
    """The net of a file, with the names of its classes where they are known."""
    card = dataclasses.replace(weights.card, source=source, sha256=sha256)
    classes = 0 if card.model.head == "none" else card.model.num_classes
    if len(card.class_names) != classes:
        class_names = imagenet.synsets() if classes == 1000 else ()
        card = dataclasses.replace(card, class_names=class_names)
    return Net(weights.variables, card)


def _pixels(
    name: str | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> str | pixels_lib.MeanAndStd | None:
    """The pixels asked for, if any, in one of two ways."""
    if mean is None and std is None:
        return name
    if name is not None or mean is None or std is None:
        raise WeightsError(
            f"preprocessing={name!r}, mean={mean!r}, std={std!r}; expected mean and "
            "std, or preprocessing"
        )
    return mean, std


def _check_classes(
    num_classes: int | None, include_top: bool | None, head: str | None
) -> None:
    known = ("fc", "gap", "linear")
    if head is not None and (head not in known or num_classes is None):
        raise WeightsError(
            f"head={head!r}, num_classes={num_classes!r}: expected 'fc', 'gap' or "
            "'linear', and the number of classes of the new head"
        )
    is_count = isinstance(num_classes, int) and num_classes > 0
    has_top = include_top is not False
    if num_classes is not None and not (is_count and has_top):
        raise WeightsError(
            f"num_classes={num_classes!r}: expected a positive number"
            + ("" if has_top else ", or features without classes: leave one out")
        )


def _check_dtype(dtype: Any) -> None:
    if dtype is None:
        return
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
