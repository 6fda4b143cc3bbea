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
from vgg_flax.weights import UntoldError, WeightsError, card
from vgg_flax.weights.card import ModelCard
from vgg_flax.weights.containers.onnx_layers import Chain
from vgg_flax.weights.lineages import axes, layouts, recognition
from vgg_flax.weights.lineages import metadata as metadata_lib
from vgg_flax.weights.lineages import pixels as pixels_lib
from vgg_flax.weights.lineages import problems as problems_lib
from vgg_flax.weights.lineages.layouts import Layout, Slot
from vgg_flax.weights.lineages.recognition import Match, Tensors


@dataclasses.dataclass(frozen=True)
class Weights:
    """A file's net.

    Attributes:
      variables: in our convention, RGB and HWIO.
      card: of the net; of classes and train scale it has what our own metadata says.
      lineage: the name of the layout.
      notes: what of the file was passed over, a line each.
    """

    variables: dict[str, Any]
    card: ModelCard
    lineage: str
    notes: tuple[str, ...] = ()


def to_weights(
    tensors: Tensors,
    *,
    sha256: str = "",
    metadata: Mapping[str, str] | None = None,
    variant: str | None = None,
    include_top: bool | None = True,
    num_classes: int | None = None,
    preprocessing: str | pixels_lib.MeanAndStd | None = None,
    crop_size: int | None = None,
    test_scale: int | None = None,
    dtype: Any = None,
    chain: Chain | None = None,
) -> Weights:
    """The net that `tensors` are.

    Args:
      tensors: by the file's names.
      sha256: of the file: some published ones are known by it.
      metadata: of the file, if we wrote it: the card is in it.
      variant: instead of the one that the names say ("vgg11_lrn" has A's names).
      include_top: False: without FC layers, `head="none"`; None: with them, if they
        are there, a VGG's, and numbers.
      num_classes: other than the file's: fc8 starts anew, with its initialiser.
      preprocessing: as of `pixels.find`, instead of what the file tells.
      crop_size: as of `ModelCard.with_sizes`, like the next one.
      test_scale: instead of what the file tells.
      dtype: of the params and the computation; None: float32, or what our own
        metadata says.
      chain: what the file's graph is, if it has one.

    Raises:
      WeightsError: listing every missing, unexpected, misshapen and non-finite
        tensor and the likely cause, or pixels that cannot be told.
    """
    entry = metadata_lib.read(metadata or {})
    written = None if entry is None else entry.card
    match = recognition.recognise_as(tensors, variant, written, chain)
    if include_top is None:
        include_top = recognition.has_top(match, tensors)
    if written is not None:
        include_top = include_top and written.model.head != "none"
    head = ("fc" if match.head == "none" else match.head) if include_top else "none"
    wanted, chosen, left_out = _choose(match, tensors, head)
    turned = _turn(match, wanted, chosen, tensors)
    if written is not None and variant is None:
        net = written.model.clone(
            dtype=str(jnp.dtype(dtype or written.model.dtype)),
            head=written.model.head if include_top else "none",
        )
    else:
        pooling = "max" if chain is None else chain.pooling
        net = _model_of(match, turned, head, dtype, pooling)
    if include_top and num_classes not in (None, net.num_classes):
        net = net.clone(num_classes=num_classes)
        turned = {p: a for p, a in turned.items() if not p.startswith("params/fc8/")}
    names = [(slot, chosen[slot.foreign]) for slot in wanted if slot.path in turned]
    shapes, dtype = card.leaf_shapes(net), jnp.dtype(dtype or net.param_dtype)
    _check_arrays(match, tensors, names, turned, shapes, dtype)
    pixels = pixels_lib.find(
        match,
        tensors,
        sha256=sha256,
        entry=entry,
        preprocessing=preprocessing,
        has_size=crop_size is not None,
        chain=chain,
    )
    if net.in_channels != pixels.preprocessing.channels:
        raise UntoldError(
            f"its first convolution takes {net.in_channels} channel(s), and the pixels "
            f"of {match.layout.name} have {pixels.preprocessing.channels}: say mean= "
            "and std= (--mean, --std), a number a channel"
        )
    variables = _variables(turned, net, shapes, pixels.bgr, dtype)
    fields = {"model": net, "preprocessing": pixels.preprocessing}
    read = dataclasses.replace(written, **fields) if written else ModelCard(**fields)
    sized = read.with_sizes(crop_size, test_scale)
    notes = (*_notes(match, chosen, left_out), *(chain.notes if chain else ()))
    return Weights(variables, sized, match.layout.name, notes)


def _notes(
    match: Match, chosen: dict[str, str], left_out: list[str]
) -> tuple[str, ...]:
    """What was passed over: what stands around names, a head of its own."""
    notes = []
    if match.around:
        first = next(name for name, found in chosen.items() if found == match.around)
        notes.append(f"its names are read as {match.around} -> {first}")
    if left_out:
        names = recognition.shortened(left_out)
        notes.append(f"left out, a head of its own: {names}")
    return tuple(notes)


def to_tensors(
    variables: Any, net: VGG, layout: Layout, *, bgr: bool
) -> dict[str, np.ndarray]:
    """`variables` under the names and in the axes of `layout`.

    Args:
      bgr: whether conv1_1's input is written as blue, green, red.

    Raises:
      WeightsError: the layout has no place for a leaf of the net.
    """
    if net.head in ("gap", "linear") and not layout.single:
        raise WeightsError(
            f"{layout.name} has no place for a head of one FC layer, head="
            f"{net.head!r}; torchvision's and Keras's names have: leave --format out"
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
        head=net.head,
    ):
        array = flat.pop(slot.path)
        if bgr and slot.path == "params/conv1_1/kernel":
            array = array[:, :, ::-1]
        tensors[slot.foreign] = np.ascontiguousarray(
            axes.turn_back(layout, slot, array)
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
    match: Match, tensors: Tensors, head: str
) -> tuple[list[Slot], dict[str, str], list[str]]:
    """The slots to fill, the names to fill them from, each used once, and the head's.

    The last are of a head that is none of a VGG, and are left out with it.

    Raises:
      WeightsError: listing the missing and the unexpected.
    """
    layout, variant, bias = match.layout, match.variant, match.conv_bias
    more: Any = {"head": head, "single": match.single}
    wanted = list(layouts.slots(layout, variant, conv_bias=bias, **more))
    tops: set[str] = set()
    if head == "none":
        tops |= {slot.foreign for slot in recognition.top_slots(match)}
    chosen = {k: v for k, v in match.names.items() if k not in tops}
    unexpected = set(chosen) - {slot.foreign for slot in wanted}
    left_out: list[str] = []
    if head == "none":
        of_head = {name for name in unexpected if recognition.is_of_head(layout, name)}
        unexpected -= of_head
        if recognition.has_own_head(match):
            of_head |= tops & match.names.keys()
        left_out = sorted(match.names[name] for name in of_head)
    problems = [f"{s.foreign}: missing" for s in wanted if s.foreign not in chosen]
    problems += [f"{chosen[name]}: unexpected" for name in sorted(unexpected)]
    if problems:
        raise problems_lib.error(match, tensors, problems)
    return wanted, chosen, left_out


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
            turned[slot.path] = axes.turn(
                match.layout, slot, tensors[name], max(channels, 1)
            )
        except ValueError as error:
            problems.append(f"{name}: {tensors[name].shape} {error}")
            continue
        if slot.layer.startswith("conv") and slot.leaf == "kernel":
            channels = turned[slot.path].shape[-1]
    if problems:
        raise problems_lib.error(match, tensors, problems)
    return turned


def _variables(
    turned: dict[str, np.ndarray],
    net: VGG,
    shapes: dict[str, tuple[int, ...]],
    bgr: bool,
    dtype: jnp.dtype,
) -> dict[str, Any]:
    """`net`'s variables of arrays in our axes; fc8 anew if it is missing."""
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
        raise problems_lib.error(match, tensors, problems)


def _model_of(
    match: Match, turned: dict[str, np.ndarray], head: str, dtype: Any, pooling: str
) -> VGG:
    first = turned["params/conv1_1/kernel"]
    fields: dict[str, Any] = {
        "variant": match.variant,
        "in_channels": first.shape[2],
        "width_multiplier": first.shape[3] / STAGE_WIDTHS[0],
        "conv_bias": match.conv_bias,
        "pooling": pooling,
        "dtype": str(jnp.dtype(dtype or "float32")),
    }
    if head == "none":
        return VGG(**fields, head=head)
    if head in ("gap", "linear"):
        window, _, _, classes = turned["params/fc8/kernel"].shape
        sizes = {"num_classes": classes} | (
            {"fc6_window": window} if window > 1 else {}
        )
        return VGG(**fields, head=head, **sizes)
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
