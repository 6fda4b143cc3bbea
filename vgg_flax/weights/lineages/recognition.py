"""What a file's names say: whose layout, which variant, and which head."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from vgg_flax import model
from vgg_flax.weights import WeightsError
from vgg_flax.weights.card import ModelCard
from vgg_flax.weights.containers.onnx_layers import Chain
from vgg_flax.weights.lineages import axes, layouts
from vgg_flax.weights.lineages.layouts import Layout, Slot

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Match:
    """What a file's names say.

    Attributes:
      layout: whose names they are.
      variant: a key of `VARIANTS`.
      conv_bias: whether the convolutions have biases.
      head: as of `VGG`: "gap" if its FC layer is one alone that takes the last
        convolution's channels, "linear" if that takes a window of them, "fc" if there
        is any other FC layer, else "none".
      names: the file's names, by the names that the layout gives.
      around: as of `OwnNames`.
      single: the prefix of the FC layer that is alone.
    """

    layout: Layout
    variant: str
    conv_bias: bool
    head: str
    names: dict[str, str]
    around: str = ""
    single: str = ""


class OwnNames(NamedTuple):
    """A file's names, as its layout would have them.

    Attributes:
      names: the file's names, by the name `slots` would give them.
      around: "net.features.0.weight" of a file whose names have something around
        them, or "".
    """

    names: dict[str, str]
    around: str


def own_names(layout: Layout, names: Iterable[str]) -> OwnNames:
    """The file's names that matter, by the name `slots` would give them.

    Wrappers, and what stands before the first convolution's name, are taken off. Where
    two names would be one, neither gets it.
    """
    short_names = {}
    for name in names:
        short = re.sub(layout.wrappers, "", name) if layout.wrappers else name
        for pattern, replacement in layout.rename:
            short = re.sub(pattern, replacement, short)
        if not any(re.search(pattern, short) for pattern in layout.ignored):
            short_names[name] = short
    first = next(layouts.slots(layout, "vgg11")).foreign
    before = {
        short.removesuffix(first)
        for short in short_names.values()
        if short == first or short.endswith((f".{first}", f"/{first}"))
    }
    prefix = before.pop() if len(before) == 1 else ""
    by_short_name: dict[str, list[str]] = {}
    for name, short in short_names.items():
        by_short_name.setdefault(short.removeprefix(prefix), []).append(name)
    chosen = {s: rivals[0] for s, rivals in by_short_name.items() if len(rivals) == 1}
    for rivals in by_short_name.values():
        if len(rivals) > 1:
            chosen |= {f"{name} (of {len(rivals)})": name for name in rivals}
    found = chosen.get(first, "")
    is_wrapped = layout.wrappers and re.search(layout.wrappers, found)
    return OwnNames(chosen, found if prefix or is_wrapped else "")


def is_of_head(layout: Layout, name: str) -> bool:
    """Whether a name, as of `own_names`, cannot be one of the convolutions'."""
    return not name.startswith(layout.conv.partition("{")[0])


def recognise(tensors: Tensors) -> Match:
    """The layout and variant that fit best: names first, then kernel sizes (C, D).

    Raises:
      WeightsError: none has a single name in common.
    """
    best: tuple[tuple[int, int, bool], Match] | None = None
    for layout in layouts.LAYOUTS:
        names, around = own_names(layout, tensors)
        for variant, table in model.VARIANTS.items():
            if table.lrn or (table.batch_norm and not layout.norm):
                continue
            expected = {s.foreign: s for s in layouts.slots(layout, variant)}
            biases = {
                foreign
                for foreign, slot in expected.items()
                if slot.layer.startswith("conv") and slot.leaf == "bias"
            }
            conv_bias = bool(biases & set(names)) or not table.batch_norm
            wanted = set(expected) - (set() if conv_bias else biases)
            fitting = sum(
                _window(layout, tensors[names[name]]) == slot.window
                for name, slot in expected.items()
                if slot.window and name in names
            )
            common, other = wanted & set(names), wanted ^ set(names)
            score = len(common) - len(other), fitting, not around
            if common and (best is None or score > best[0]):
                match = Match(layout, variant, conv_bias, "none", names, around)
                best = score, match
    if best is None:
        raise WeightsError(
            f"no lineage of VGG names its tensors like this: {shortened(tensors)}; "
            "known: " + ", ".join(layout.name for layout in layouts.LAYOUTS)
        )
    return _with_head(best[1], tensors)


def recognise_as(
    tensors: Tensors,
    variant: str | None,
    written: ModelCard | None,
    chain: Chain | None,
) -> Match:
    """As `recognise`; the variant of what tells more of it than names do.

    Args:
      variant: that is asked for.
      written: the card of a file that we wrote.
      chain: what the file's graph is.

    Raises:
      WeightsError: as of `recognise`, or no such variant.
    """
    match = recognise(tensors)
    if variant is None and written is not None:
        variant = written.variant
    elif variant is None and chain is not None and chain.lrn:
        variant = f"{match.variant}_lrn"
    try:
        name = model.variant_name(variant or match.variant)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return dataclasses.replace(match, variant=name)


def _with_head(match: Match, tensors: Tensors) -> Match:
    """A match whose head is "none" so far, with that of the file."""
    layout = match.layout
    head = {name for name in match.names if is_of_head(layout, name)}
    for single in layout.single:
        kernel, bias = (single + layout.leaves[leaf] for leaf in ("kernel", "bias"))
        if head != {kernel, bias}:
            continue
        shape = tensors[match.names[kernel]].shape
        if len(shape) == 2:
            inputs = shape[layout.dense.index("I")]
            side = axes.window_of(inputs, channels(match, tensors))
        elif len(shape) == 4 and "fc8" in layout.convolutional:
            side = shape[layout.kernel.index("H")]
        else:
            continue
        # After global pooling anything is called so, and its size would be asked for.
        if side > 1 or (side and single == layout.single[0]):
            name = "gap" if side == 1 else "linear"
            return dataclasses.replace(match, head=name, single=single)
    tops = {slot.foreign for slot in top_slots(match)}
    tops |= {single + layout.leaves["kernel"] for single in layout.single[:1]}
    is_there = bool(tops & match.names.keys())
    return dataclasses.replace(match, head="fc" if is_there else "none")


def channels(match: Match, tensors: Tensors) -> int:
    """Of the last convolution; 0 where that is missing, or is none."""
    every = layouts.slots(match.layout, match.variant, head="none")
    last = [slot.foreign for slot in every if slot.window][-1]
    kernel = tensors.get(match.names.get(last, ""))
    if kernel is None or kernel.ndim != 4:
        return 0
    return kernel.shape[match.layout.kernel.index("O")]


def top_slots(match: Match) -> list[Slot]:
    """Those of the FC layers, as they are or, without any, would be in the file."""
    head = "fc" if match.head == "none" else match.head
    every = layouts.slots(match.layout, match.variant, head=head, single=match.single)
    return [slot for slot in every if slot.layer.startswith("fc")]


def has_own_head(match: Match) -> bool:
    """Whether there is a head that is none of a VGG, and none of a VGG's whole."""
    tops = {slot.foreign for slot in top_slots(match)}
    others = {name for name in match.names if is_of_head(match.layout, name)} - tops
    return bool(others) and not tops <= match.names.keys()


def has_top(match: Match, tensors: Tensors) -> bool:
    """Whether there are FC layers, those of a VGG, and numbers."""
    is_nan = top_is_nan(match, tensors)
    return match.head != "none" and not is_nan and not has_own_head(match)


def top_is_nan(match: Match, tensors: Tensors) -> bool:
    """Whether the FC layers are there and all NaN: a features-only file."""
    tops = [
        tensors[match.names[slot.foreign]]
        for slot in top_slots(match)
        if slot.foreign in match.names
    ]
    # The smallest first: a bias that is none ends it, and fc6 has 100 million weights.
    tops.sort(key=np.size)
    return bool(tops) and all(np.isnan(array).all() for array in tops)


def _window(layout: Layout, array: np.ndarray) -> int:
    return array.shape[layout.kernel.index("H")] if array.ndim == 4 else 0


def shortened(names: Iterable[str]) -> str:
    """The first few names, for messages."""
    listed = list(names)
    return ", ".join(map(str, listed[:6])) + (", ..." if len(listed) > 6 else "")
