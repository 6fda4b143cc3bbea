"""Named tensors <-> a VGG's variables: recognised, turned, and checked as a whole.

Every leaf is filled once and every tensor used once, or one error lists all that is
wrong.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vgg_flax import model as model_lib
from vgg_flax.model import STAGE_WIDTHS, VGG, layers
from vgg_flax.weights import WeightsError, card
from vgg_flax.weights.card import ModelCard
from vgg_flax.weights.lineages import layouts, recognition
from vgg_flax.weights.lineages import metadata as metadata_lib
from vgg_flax.weights.lineages.layouts import Layout, Slot
from vgg_flax.weights.lineages.recognition import Match, Tensors

_WITHOUT_TOP = "include_top=False (--features-only of convert and describe)"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A file's net.

    Attributes:
      variables: in our convention, RGB and HWIO.
      card: of the net; of classes and train scale it has what our own metadata says.
      lineage: the name of the layout.
    """

    variables: dict[str, Any]
    card: ModelCard
    lineage: str


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
      metadata: of the file, if we wrote it: the card is in it.
      variant: instead of the one that the names say ("vgg11_lrn" has A's names).
      include_top: False: without FC layers, `head="none"`.
      num_classes: other than the file's: fc8 starts anew, with its initialiser.
      preprocessing: a key of `layouts.PIXELS`, instead of what the file tells.
      dtype: of the params and the computation; None: float32, or what our own
        metadata says.

    Raises:
      WeightsError: listing every missing, unexpected, misshapen and non-finite
        tensor and the likely cause, or pixels that cannot be told.
    """
    match, entry = recognition.recognise(tensors), metadata_lib.read(metadata or {})
    written = None if entry is None else entry.card
    if written is not None:
        match = dataclasses.replace(match, variant=written.variant)
        include_top = include_top and written.model.head != "none"
    if variant is not None:
        match = dataclasses.replace(match, variant=_variant(variant))
    pixels = recognition.find_pixels(match, tensors, sha256, entry, preprocessing)
    wanted, chosen = _choose(match, tensors, include_top)
    turned = _turn(match, wanted, chosen, tensors)
    if written is not None and variant is None:
        net = written.model.clone(
            dtype=str(jnp.dtype(dtype or written.model.dtype)),
            head=written.model.head if include_top else "none",
        )
    else:
        net = _model_of(match, turned, include_top, dtype)
    if net.in_channels != pixels.preprocessing.channels:
        raise WeightsError(
            f"its first convolution takes {net.in_channels} channel(s), and the pixels "
            f"of {match.layout.name} have {pixels.preprocessing.channels}"
        )
    if include_top and num_classes not in (None, net.num_classes):
        net = net.clone(num_classes=num_classes)
        turned = {p: a for p, a in turned.items() if not p.startswith("params/fc8/")}
    names = [(slot, chosen[slot.foreign]) for slot in wanted if slot.path in turned]
    variables = _variables(match, tensors, names, turned, net, pixels.bgr, dtype)
    fields = {"model": net, "preprocessing": pixels.preprocessing}
    return Weights(
        variables=variables,
        card=dataclasses.replace(written, **fields) if written else ModelCard(**fields),
        lineage=match.layout.name,
    )


def to_tensors(
    variables: Any, net: VGG, layout: Layout, *, bgr: bool
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
    tensors: dict[str, np.ndarray] = {}
    for slot in layouts.slots(
        layout,
        model_lib.variant_name(net.variant),
        conv_bias=net.conv_bias,
        include_top=net.head == "fc",
    ):
        array = flat.pop(slot.path)
        if bgr and slot.path == "params/conv1_1/kernel":
            array = array[:, :, ::-1]
        tensors[slot.foreign] = np.ascontiguousarray(
            layouts.turn_back(layout, slot, array)
        )
    if flat:
        raise WeightsError(
            f"{layout.name} has no place for {recognition.shortened(flat)}; fold "
            "BatchNorm first (--fold-bn), or choose another format"
        )
    return tensors


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


def _choose(
    match: Match, tensors: Tensors, include_top: bool
) -> tuple[list[Slot], dict[str, str]]:
    """The slots to fill and the names to fill them from, each used once.

    Raises:
      WeightsError: listing the missing and the unexpected.
    """
    wanted = list(
        layouts.slots(
            match.layout,
            match.variant,
            conv_bias=match.conv_bias,
            include_top=include_top,
        )
    )
    tops = (
        set()
        if include_top
        else {slot.foreign for slot in recognition.top_slots(match)}
    )
    chosen = {k: v for k, v in match.names.items() if k not in tops}
    unexpected = set(chosen) - {slot.foreign for slot in wanted}
    problems = [f"{s.foreign}: missing" for s in wanted if s.foreign not in chosen]
    problems += [f"{chosen[name]}: unexpected" for name in sorted(unexpected)]
    if problems:
        raise _error(match, tensors, problems)
    return wanted, chosen


def _turn(
    match: Match, wanted: list[Slot], chosen: dict[str, str], tensors: Tensors
) -> dict[str, np.ndarray]:
    """The tensors in our axes, by path; raises WeightsError for what cannot be one."""
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
    if problems:
        raise _error(match, tensors, problems)
    return turned


def _variables(
    match: Match,
    tensors: Tensors,
    names: list[tuple[Slot, str]],
    turned: dict[str, np.ndarray],
    net: VGG,
    bgr: bool,
    dtype: Any,
) -> dict[str, Any]:
    """`net`'s variables of arrays in our axes, checked; fc8 anew if it is missing."""
    shapes, dtype = card.leaf_shapes(net), jnp.dtype(dtype or net.param_dtype)
    _check_arrays(match, tensors, names, turned, shapes, dtype)
    if bgr:
        first = "params/conv1_1/kernel"
        turned = {**turned, first: turned[first][:, :, ::-1]}
    flat = {path: place(array, dtype) for path, array in turned.items()}
    if "params/fc8/kernel" in shapes.keys() - flat.keys():
        flat |= _new_fc8(net, shapes, dtype)
    return traverse_util.unflatten_dict(flat, sep="/")


def _check_arrays(
    match: Match,
    tensors: Tensors,
    names: list[tuple[Slot, str]],
    turned: dict[str, np.ndarray],
    shapes: dict[str, tuple[int, ...]],
    dtype: jnp.dtype,
) -> None:
    """Raises WeightsError listing the misshapen, the non-finite and the impossible."""
    problems = []
    for slot, name in names:
        array, expected = turned[slot.path], shapes.get(slot.path)
        if array.shape != expected:
            problems.append(
                f"{name}: {tensors[name].shape} gives {array.shape} for "
                f"{slot.layer}'s {slot.leaf}, expected {expected}"
            )
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"{name}: {array.dtype}, expected floats")
        elif not _is_finite(array, dtype):
            problems.append(f"{name}: not finite as {dtype}")
        elif slot.leaf == "var" and array.size and array.min() < 0:
            problems.append(f"{name}: a variance below zero")
    if problems:
        raise _error(match, tensors, problems)


def _model_of(
    match: Match, turned: dict[str, np.ndarray], include_top: bool, dtype: Any
) -> VGG:
    first = turned["params/conv1_1/kernel"]
    fields: dict[str, Any] = {
        "variant": match.variant,
        "in_channels": first.shape[2],
        "width_multiplier": first.shape[3] / STAGE_WIDTHS[0],
        "conv_bias": match.conv_bias,
        "dtype": str(jnp.dtype(dtype or "float32")),
    }
    if not include_top:
        return VGG(**fields, head="none")
    kernels = [turned[f"params/{layer}/kernel"] for layer in ("fc6", "fc7", "fc8")]
    return VGG(
        **fields,
        num_classes=kernels[2].shape[-1],
        fc_widths=(kernels[0].shape[-1], kernels[1].shape[-1]),
        fc6_window=kernels[0].shape[0],
    )


def _is_finite(array: np.ndarray, dtype: jnp.dtype) -> bool:
    """Whether it is still so when cast to `dtype`."""
    if not array.size:
        return True
    # NaN and infinities survive into the extremes, and no mask is allocated.
    low, high = float(array.min()), float(array.max())
    largest = float(jnp.finfo(dtype).max)
    return -largest <= low and high <= largest


def _new_fc8(
    net: VGG, shapes: dict[str, tuple[int, ...]], dtype: jnp.dtype
) -> dict[str, jax.Array]:
    init = layers.INITIALIZERS[net.initializer][1]
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
    tops = {slot.foreign for slot in recognition.top_slots(match)}
    missing = {p.removesuffix(": missing") for p in problems if p.endswith(": missing")}
    if missing and missing <= tops and not match.has_top:
        return f"The file holds the convolutions only: use {_WITHOUT_TOP}"
    if recognition.top_is_nan(match, tensors):
        return f"Its FC layers are NaN, a features-only file: use {_WITHOUT_TOP}"
    by_names = recognition.recognise(tensors)
    if by_names.variant != match.variant:
        return f"By its names the file is a {by_names.variant}"
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


def _variant(name: str) -> str:
    try:
        return model_lib.variant_name(name)
    except ValueError as error:
        raise WeightsError(str(error)) from error
