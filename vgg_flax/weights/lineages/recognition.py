"""What a file's names say: whose layout, which variant, and the pixels they want."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from vgg_flax import model
from vgg_flax.weights import WeightsError
from vgg_flax.weights.lineages import layouts, metadata
from vgg_flax.weights.lineages.layouts import Layout, Pixels, Slot

Tensors = Mapping[str, np.ndarray]

# Published under torchvision's names, for other pixels; by the head of the sha256.
_KNOWN_PIXELS = {"00b39a1b": "caffe", "d01eb7cb": "caffe"}  # jcjohnson's VGG-16, -19
# How the authors' two nets begin, which were saved again under many names: conv1_1's
# first eight biases, and its first kernel's top left weight for blue and for red. The
# scale of conv1_1 does not tell them from torchvision's: both have an rms of about 0.2.
_AUTHORS = {
    "vgg16": (
        (0.7343, 0.0934, 0.0678, 0.8863, 0.2599, 0.6643, -0.0158, 0.3249),
        *(0.4295, 0.4800),
    ),
    "vgg19": (
        (0.7302, 0.0649, 0.0343, 0.8260, 0.2578, 0.5487, -0.0124, 0.3479),
        *(0.3412, 0.3942),
    ),
}


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


def recognise(tensors: Tensors) -> Match:
    """The layout and variant that fit best: names first, then kernel sizes (C, D).

    Raises:
      WeightsError: none has a single name in common.
    """
    best: tuple[tuple[int, int], Match] | None = None
    for layout in layouts.LAYOUTS:
        names = layouts.own_names(layout, tensors)
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
            score = len(wanted & set(names)) - len(wanted ^ set(names)), fitting
            has_top = any(
                expected[name].layer.startswith("fc") for name in names.keys() & wanted
            )
            if wanted & set(names) and (best is None or score > best[0]):
                best = score, Match(layout, variant, conv_bias, has_top, names)
    if best is None:
        raise WeightsError(
            f"no lineage of VGG names its tensors like this: {shortened(tensors)}; "
            "known: " + ", ".join(layout.name for layout in layouts.LAYOUTS)
        )
    return best[1]


def find_pixels(
    match: Match,
    tensors: Tensors,
    sha256: str,
    entry: metadata.Entry | None,
    preprocessing: str | None,
) -> Pixels:
    """The pixels that a file wants: asked for, its entry's, known, or its lineage's.

    Raises:
      WeightsError: they can't be told, or are asked for where an entry has them.
    """
    known = ", ".join(layouts.PIXELS)
    if entry is not None and preprocessing is not None:
        raise WeightsError(
            f"the file says its pixels itself; leave out preprocessing={preprocessing}"
        )
    if preprocessing is not None:
        if preprocessing not in layouts.PIXELS:
            raise WeightsError(f"preprocessing={preprocessing!r}; known: {known}")
        return layouts.PIXELS[preprocessing]
    if entry is not None:
        return Pixels(entry.card.preprocessing, entry.bgr)
    if sha256[:8] in _KNOWN_PIXELS:
        return layouts.PIXELS[_KNOWN_PIXELS[sha256[:8]]]
    if match.layout.name == "torchvision" and top_is_nan(match, tensors):
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
        return _authors_pixels(match, tensors) or layouts.PIXELS[name]
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


def _authors_pixels(match: Match, tensors: Tensors) -> Pixels | None:
    """Caffe's, if conv1_1 is that of the authors' net, fine-tuned or rounded or not."""
    if match.variant not in _AUTHORS:
        return None
    biases, blue, red = _AUTHORS[match.variant]
    kernel_slot, bias_slot = list(layouts.slots(match.layout, match.variant))[:2]
    kernel = tensors.get(match.names.get(kernel_slot.foreign, ""))
    bias = tensors.get(match.names.get(bias_slot.foreign, ""))
    if kernel is None or bias is None or kernel.ndim != 4 or bias.size < len(biases):
        return None
    # Fine-tuning moves them by thousandths; biases of other nets are half a unit away.
    distance = np.abs(bias.ravel()[: len(biases)].astype(np.float64) - biases).max()
    if not distance <= 0.05:  # nor NaN
        return None
    first = float(kernel[0, 0, 0, 0])  # the first whatever the order of the axes
    caffe = layouts.PIXELS["caffe"]
    return dataclasses.replace(caffe, bgr=abs(first - blue) < abs(first - red))


def top_slots(match: Match) -> list[Slot]:
    """Those of the FC layers."""
    every = layouts.slots(match.layout, match.variant)
    return [slot for slot in every if slot.layer.startswith("fc")]


def top_is_nan(match: Match, tensors: Tensors) -> bool:
    """Whether the FC layers are there and all NaN: a features-only file."""
    tops = [
        match.names[s.foreign] for s in top_slots(match) if s.foreign in match.names
    ]
    return bool(tops) and all(np.isnan(tensors[name]).all() for name in tops)


def _window(layout: Layout, array: np.ndarray) -> int:
    return array.shape[layout.kernel.index("H")] if array.ndim == 4 else 0


def shortened(names: Iterable[str]) -> str:
    """The first few names, for messages."""
    listed = list(names)
    return ", ".join(map(str, listed[:6])) + (", ..." if len(listed) > 6 else "")
