"""Named tensors <-> a VGG's variables: recognised, turned, and checked as a whole.

Every leaf is filled once and every tensor used once, or one error lists all that is
wrong.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vgg_flax import model
from vgg_flax.preprocess import Preprocessing
from vgg_flax.weights import WeightsError, layouts
from vgg_flax.weights.layouts import Layout, Pixels, Slot

Tensors = Mapping[str, np.ndarray]

# Published under torchvision's names, for other pixels; by the head of the sha256.
_KNOWN_PIXELS = {"00b39a1b": "caffe", "d01eb7cb": "caffe"}  # jcjohnson's VGG-16, -19
_TORCHVISION = {"397923af", "dcbb9e9d"}  # its own vgg16 and vgg19
METADATA_KEY = "vgg_flax"  # in files that we wrote


class Told(NamedTuple):
    """What the metadata of a file that we wrote says: see `net.meta_of`.

    Attributes:
      model: the module.
      preprocessing: the pixels.
      bgr: whether conv1_1's input axis is written blue first.
      class_names: in the order of the logits.
      train_scale: S, (low, high), or None.
    """

    model: model.VGG
    preprocessing: Preprocessing
    bgr: bool
    class_names: tuple[str, ...]
    train_scale: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Match:
    """What a file's names say.

    Attributes:
      layout: whose names they are.
      variant: a key of `VARIANTS`.
      conv_bias: whether the convolutions have biases.
      has_top: whether any FC layer is there.
      names: the file's names, by the names that the layout gives.
    """

    layout: Layout
    variant: str
    conv_bias: bool
    has_top: bool
    names: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Weights:
    """A file's net: module and variables in our convention, RGB and HWIO."""

    model: model.VGG
    variables: dict[str, Any]
    preprocessing: Preprocessing
    lineage: str


def recognise(tensors: Tensors) -> Match:
    """The layout and variant that fit best: names first, then kernel sizes (C, D).

    Raises:
      WeightsError: none has a single name in common.
    """
    best: tuple[tuple[int, int], Match] | None = None
    for layout in layouts.LAYOUTS:
        found = layouts.own_names(layout, tensors)
        for variant, table in model.VARIANTS.items():
            if table.lrn or (table.batch_norm and not layout.norm):
                continue
            expected = {s.foreign: s for s in layouts.slots(layout, variant)}
            biases = {
                foreign
                for foreign, slot in expected.items()
                if slot.layer.startswith("conv") and slot.leaf == "bias"
            }
            conv_bias = bool(biases & set(found)) or not table.batch_norm
            wanted = set(expected) - (set() if conv_bias else biases)
            fitting = sum(
                _window(layout, tensors[found[name]]) == slot.window
                for name, slot in expected.items()
                if slot.window and name in found
            )
            score = len(wanted & set(found)) - len(wanted ^ set(found)), fitting
            has_top = any(
                expected[name].layer.startswith("fc") for name in found.keys() & wanted
            )
            if wanted & set(found) and (best is None or score > best[0]):
                best = score, Match(layout, variant, conv_bias, has_top, found)
    if best is None:
        raise WeightsError(
            f"no lineage of VGG names its tensors like this: {_some(tensors)}; known: "
            + ", ".join(layout.name for layout in layouts.LAYOUTS)
        )
    return best[1]


def to_weights(
    tensors: Tensors,
    *,
    sha256: str = "",
    metadata: Mapping[str, str] | None = None,
    variant: str | None = None,
    include_top: bool = True,
    num_classes: int | None = None,
    preprocessing: str | None = None,
    dtype: Any = None,
) -> Weights:
    """The net that `tensors` are.

    Args:
      tensors: by the file's names.
      sha256: of the file: some published ones are known by it.
      metadata: of the file, if we wrote it: the pixels are in it.
      variant: instead of the one that the names say ("vgg11_lrn" has A's names).
      include_top: False: without FC layers, `head="none"`.
      num_classes: other than the file's: fc8 starts anew, with its initialiser.
      preprocessing: a key of `layouts.PIXELS`, instead of what the file tells.
      dtype: of the params and the computation; None: float32.

    Raises:
      WeightsError: listing every missing, unexpected, misshapen and non-finite
        tensor and the likely cause, or pixels that cannot be told.
    """
    match, told = recognise(tensors), read_metadata(metadata or {})
    if told is not None:
        match = dataclasses.replace(match, variant=told.model.variant)
        include_top = include_top and told.model.head != "none"
    if variant is not None:
        match = dataclasses.replace(match, variant=_variant(variant))
    pixels = _pixels(match, tensors, sha256, told, preprocessing)
    wanted = list(
        layouts.slots(
            match.layout,
            match.variant,
            conv_bias=match.conv_bias,
            include_top=include_top,
        )
    )
    chosen = dict(match.names)
    if not include_top:
        tops = {slot.foreign for slot in _tops(match)}
        chosen = {k: v for k, v in chosen.items() if k not in tops}
    problems = [f"{s.foreign}: missing" for s in wanted if s.foreign not in chosen]
    unexpected = set(chosen) - {s.foreign for s in wanted}
    problems += [f"{chosen[name]}: unexpected" for name in sorted(unexpected)]
    if problems:
        raise _error(match, tensors, problems)
    turned, problems = _turn(match, wanted, chosen, tensors)
    if problems:
        raise _error(match, tensors, problems)
    if told is not None and variant is None:
        net = told.model.clone(
            dtype=str(jnp.dtype(dtype or told.model.dtype)),
            head=told.model.head if include_top else "none",
        )
    else:
        net = _model_of(match, turned, include_top, dtype)
    if net.in_channels != pixels.preprocessing.channels:
        raise WeightsError(
            f"its first convolution takes {net.in_channels} channel(s), and the pixels "
            f"of {match.layout.name} have {pixels.preprocessing.channels}"
        )
    replaced = (
        num_classes is not None and include_top and num_classes != net.num_classes
    )
    if replaced:
        net = net.clone(num_classes=num_classes)
        turned = {p: a for p, a in turned.items() if not p.startswith("params/fc8/")}
    shapes, out_dtype = _shapes(net), jnp.dtype(dtype or "float32")
    for slot in wanted:
        if slot.path not in turned:
            continue
        array, expected = turned[slot.path], shapes[slot.path]
        name = chosen[slot.foreign]
        if array.shape != expected:
            problems.append(
                f"{name}: {tensors[name].shape} gives {array.shape} for "
                f"{slot.layer}'s {slot.leaf}, expected {expected}"
            )
        elif not _is_finite(array, out_dtype):
            problems.append(f"{name}: not finite as {out_dtype}")
        elif slot.leaf == "var" and array.size and array.min() < 0:
            problems.append(f"{name}: a variance below zero")
    if problems:
        raise _error(match, tensors, problems)
    if pixels.bgr:
        first = "params/conv1_1/kernel"
        turned[first] = turned[first][:, :, ::-1]
    flat = {path: place(array, out_dtype) for path, array in turned.items()}
    if replaced:
        flat |= _new_fc8(net, shapes, out_dtype)
    return Weights(
        model=net,
        variables=traverse_util.unflatten_dict(flat, sep="/"),
        preprocessing=pixels.preprocessing,
        lineage=match.layout.name,
    )


def to_tensors(
    variables: Any, net: model.VGG, layout: Layout, *, bgr: bool
) -> dict[str, np.ndarray]:
    """`variables` under the names and in the axes of `layout`.

    Args:
      bgr: whether conv1_1's input is written as blue, green, red.

    Raises:
      WeightsError: the layout has no place for a leaf of the net.
    """
    if net.head == "gap":
        raise WeightsError(
            f"{layout.name} has no place for a head of global average pooling; convert "
            "to a checkpoint instead"
        )
    flat = {
        path: np.asarray(leaf)
        for path, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items()
    }
    found: dict[str, np.ndarray] = {}
    for slot in layouts.slots(
        layout,
        net.variant,
        conv_bias=net.conv_bias,
        include_top=net.head == "fc",
    ):
        array = flat.pop(slot.path)
        if bgr and slot.path == "params/conv1_1/kernel":
            array = array[:, :, ::-1]
        found[slot.foreign] = np.ascontiguousarray(
            layouts.turn_back(layout, slot, array)
        )
    if flat:
        raise WeightsError(
            f"{layout.name} has no place for {_some(flat)}; fold BatchNorm first "
            "(--fold-bn), or choose another format"
        )
    return found


def write_metadata(meta: Mapping[str, Any], *, bgr: bool) -> dict[str, str]:
    """What a file that we write says of its net; JSON in one string."""
    return {METADATA_KEY: json.dumps({**meta, "bgr": bgr})}


def read_metadata(metadata: Mapping[str, str]) -> Told | None:
    """What `write_metadata` wrote; None for files of others.

    Raises:
      WeightsError: there is an entry of ours, and it is damaged.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        told = json.loads(metadata[METADATA_KEY])
        settings, scale = told["model"], told["train_scale"]
        net = model.VGG(**{**settings, "fc_widths": tuple(settings["fc_widths"])})
        _shapes(net)  # a damaged setting fails here
        return Told(
            model=net,
            preprocessing=Preprocessing.from_dict(told["preprocessing"]),
            bgr=bool(told["bgr"]),
            class_names=tuple(str(name) for name in told["class_names"]),
            train_scale=None if scale is None else (int(scale[0]), int(scale[1])),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"the metadata {METADATA_KEY!r} of the file is damaged: {error!r:.200}"
        ) from error


def place(array: np.ndarray, dtype: jnp.dtype) -> jax.Array:
    """A copy on the default device, C-ordered: on CPU one copy, and no second.

    A 64-byte aligned buffer is what XLA takes over as it is.
    """
    count = array.size * dtype.itemsize
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    buffer = raw[start : start + count].view(dtype).reshape(array.shape)
    if array.ndim == 0 or array.flags.c_contiguous:
        buffer[...] = array
    else:  # 64 columns at a time: a transposed fc6 is read once through the cache
        for left in range(0, array.shape[-1], 64):
            buffer[..., left : left + 64] = array[..., left : left + 64]
    return jax.device_put(buffer)


def _window(layout: Layout, array: np.ndarray) -> int:
    return array.shape[layout.kernel.index("H")] if array.ndim == 4 else 0


def _pixels(
    match: Match,
    tensors: Tensors,
    sha256: str,
    told: Told | None,
    preprocessing: str | None,
) -> Pixels:
    known = ", ".join(layouts.PIXELS)
    if preprocessing is not None:
        if preprocessing not in layouts.PIXELS:
            raise WeightsError(f"preprocessing={preprocessing!r}; known: {known}")
        return layouts.PIXELS[preprocessing]
    if told is not None:
        return Pixels(told.preprocessing, told.bgr)
    if sha256[:8] in _KNOWN_PIXELS:
        return layouts.PIXELS[_KNOWN_PIXELS[sha256[:8]]]
    if match.layout.name == "torchvision" and _top_is_nan(match, tensors):
        return layouts.PIXELS["features"]
    ask = f"say which: preprocessing= (--preprocessing) one of {known}"
    if not match.has_top and not match.layout.pixels_without_top:
        raise WeightsError(
            "the names of this file do not tell its pixels (Keras applications and "
            f"KerasHub share them): {ask}"
        )
    name = match.layout.pixels
    assert name is not None
    if name == "torchvision":
        _check_scale(match, tensors, ask)
        if match.layout.kernel == "OIHW" and match.variant in ("vgg16", "vgg19"):
            _warn_of_caffe(match, sha256)
    return layouts.PIXELS[name]


def _check_scale(match: Match, tensors: Tensors, ask: str) -> None:
    """Kernels for pixels of deviation 1 are not a hundredth of what they need be."""
    slot = next(layouts.slots(match.layout, match.variant))
    kernel = tensors.get(match.names.get(slot.foreign, ""))
    if kernel is None or not kernel.size:
        return
    rms = float(np.sqrt(np.mean(np.square(kernel.astype(np.float64)))))
    # 27 inputs of deviation 1: below 0.005 the response is under 0.03 of a unit, which
    # only pixels of 0 to 255 would mend.
    if 0 < rms < 0.005:
        raise WeightsError(
            f"{match.names[slot.foreign]} has rms {rms:.2g}: it looks made for pixels "
            f"of 0 to 255, and {match.layout.name}'s names stand for normalised ones; "
            f"{ask}"
        )


def _warn_of_caffe(match: Match, sha256: str) -> None:
    """The authors' two nets were also published under torchvision's names."""
    if match.layout.name.startswith("torchvision") and sha256[:8] not in _TORCHVISION:
        logging.warning(
            "taking torchvision's pixels for a %s that is none of the published files "
            "by its sha256; if it comes from Caffe's weights: --preprocessing caffe",
            match.variant,
        )


def _variant(name: str) -> str:
    try:
        return model.variant_name(name)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def _tops(match: Match) -> list[Slot]:
    every = layouts.slots(match.layout, match.variant)
    return [slot for slot in every if slot.layer.startswith("fc")]


def _top_is_nan(match: Match, tensors: Tensors) -> bool:
    tops = [match.names[s.foreign] for s in _tops(match) if s.foreign in match.names]
    return bool(tops) and all(np.isnan(tensors[name]).all() for name in tops)


def _turn(
    match: Match, wanted: list[Slot], chosen: dict[str, str], tensors: Tensors
) -> tuple[dict[str, np.ndarray], list[str]]:
    turned: dict[str, np.ndarray] = {}
    problems = []
    channels = 0
    for slot in wanted:
        name = chosen[slot.foreign]
        try:
            turned[slot.path] = layouts.turn(
                match.layout, slot, tensors[name], max(channels, 1)
            )
        except ValueError as error:
            problems.append(f"{name}: {tensors[name].shape} {error}")
            continue
        if slot.layer.startswith("conv") and slot.leaf == "kernel":
            channels = turned[slot.path].shape[-1]
    return turned, problems


def _model_of(
    match: Match, turned: dict[str, np.ndarray], include_top: bool, dtype: Any
) -> model.VGG:
    first = turned["params/conv1_1/kernel"]
    fields: dict[str, Any] = {
        "variant": match.variant,
        "in_channels": first.shape[2],
        "width_multiplier": first.shape[3] / model.STAGE_WIDTHS[0],
        "conv_bias": match.conv_bias,
        "dtype": str(jnp.dtype(dtype or "float32")),
    }
    if not include_top:
        return model.VGG(**fields, head="none")
    kernels = [turned[f"params/{layer}/kernel"] for layer in ("fc6", "fc7", "fc8")]
    return model.VGG(
        **fields,
        num_classes=kernels[2].shape[-1],
        fc_widths=(kernels[0].shape[-1], kernels[1].shape[-1]),
        fc6_window=kernels[0].shape[0],
    )


def _shapes(net: model.VGG) -> dict[str, tuple[int, ...]]:
    """The shape of each of `net`'s leaves; nothing is computed."""
    side = net.smallest_image
    images = jax.ShapeDtypeStruct((1, side, side, net.in_channels), net.param_dtype)
    variables: Any = jax.eval_shape(net.init, jax.random.key(0), images)
    flat: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def _is_finite(array: np.ndarray, dtype: jnp.dtype) -> bool:
    """Whether it is still so when cast to `dtype`."""
    if not array.size:
        return True
    # NaN and infinities survive into the extremes, and no mask is allocated.
    low, high = float(array.min()), float(array.max())
    largest = float(jnp.finfo(dtype).max)
    return -largest <= low and high <= largest


def _new_fc8(
    net: model.VGG, shapes: dict[str, tuple[int, ...]], dtype: jnp.dtype
) -> dict[str, jax.Array]:
    init = model.INITIALIZERS[net.initializer][1]
    shape = shapes["params/fc8/kernel"]
    return {
        "params/fc8/kernel": init(jax.random.key(0), shape, dtype),
        "params/fc8/bias": jnp.zeros(shape[-1:], dtype),
    }


def _error(match: Match, tensors: Tensors, problems: list[str]) -> WeightsError:
    shown = "; ".join(problems[:12])
    if len(problems) > 12:
        shown += f"; and {len(problems) - 12} more"
    cause = _likely_cause(match, tensors, problems)
    return WeightsError(
        f"these are not the weights of a {match.variant} as {match.layout.name} "
        f"saves it: {shown}" + (f". {cause}" if cause else "")
    )


def _likely_cause(match: Match, tensors: Tensors, problems: list[str]) -> str:
    tops = {slot.foreign for slot in _tops(match)}
    missing = {p.removesuffix(": missing") for p in problems if p.endswith(": missing")}
    if missing and missing <= tops and not match.has_top:
        return "The file holds the convolutions only: use include_top=False"
    if _top_is_nan(match, tensors):
        return "Its FC layers are NaN, a features-only file: use include_top=False"
    said = recognise(tensors)
    if said.variant != match.variant:
        return f"By its names the file is a {said.variant}"
    th_ordered = match.layout.kernel == "HWIO" and any(
        array.ndim == 4 and array.shape[2:] == (3, 3) and array.shape[:2] != (3, 3)
        for array in tensors.values()
    )
    if th_ordered:
        return (
            "Its kernels are ordered [out, in, height, width], as Keras with Theano "
            "wrote them ('th'): convert the file with Keras 2 first"
        )
    if any(": not finite" in p or "below zero" in p for p in problems):
        return "Training diverged, or the file is damaged"
    return ""


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(map(str, listed[:6])) + (", ..." if len(listed) > 6 else "")
