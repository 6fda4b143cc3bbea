"""The pixels that a file's net wants, by what the file holds: the one rule for all.

In this order: what was asked for; the card of a file that we wrote; the marks of
published nets (their hash, conv1_1, their head), whoever saved them and under whatever
names; the lineage whose names they are, where only its nets are called so. The size is
fc6's window. What none of these tells is asked for.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vgg_flax import errors
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.weights import UntoldError, WeightsError
from vgg_flax.weights.containers.onnx_layers import Chain
from vgg_flax.weights.lineages import axes, graph, layouts, metadata, recognition
from vgg_flax.weights.lineages.layouts import Pixels
from vgg_flax.weights.lineages.recognition import Match, Tensors

MeanAndStd = tuple[Sequence[float], Sequence[float]]
# Published under torchvision's names, for other pixels; by the head of the sha256.
_KNOWN_FILES = {"00b39a1b": "caffe", "d01eb7cb": "caffe"}  # jcjohnson's VGG-16, -19
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


def find(
    match: Match,
    tensors: Tensors,
    *,
    sha256: str = "",
    entry: metadata.Entry | None = None,
    preprocessing: str | MeanAndStd | None = None,
    has_size: bool = False,
    chain: Chain | None = None,
) -> Pixels:
    """What a file's first convolution expects, and at which size.

    Args:
      match: what its names say.
      tensors: by the file's names.
      sha256: of the file: some published ones are known by it.
      entry: of the file, if we wrote it.
      preprocessing: a key of `layouts.PIXELS`, or the mean and std of pixels in
        [0, 1], RGB or grey, if they are asked for.
      has_size: whether a crop size is given, so that none need be known: where none
        is, that in the answer means nothing.
      chain: what the file's graph is, if it has one.

    Raises:
      WeightsError: naming the arguments that are asked for, where the file does not
        tell; or `preprocessing` is unknown, or given for a file that tells itself.
    """
    if entry is not None:
        if preprocessing is not None:
            raise WeightsError(
                "the file says its pixels itself; leave out "
                + (
                    f"preprocessing={preprocessing}"
                    if isinstance(preprocessing, str)
                    else "mean and std"
                )
            )
        return Pixels(entry.card.preprocessing, entry.bgr)
    known = ", ".join(layouts.PIXELS)
    if isinstance(preprocessing, str) and preprocessing not in layouts.PIXELS:
        raise WeightsError(f"preprocessing={preprocessing!r}; known: {known}")
    unknown, missing = [], []
    authors = _of_authors(match, tensors)
    normalised = None if chain is None else graph.pixels(chain, authors)
    if preprocessing is not None:
        if isinstance(normalised, Pixels):
            raise WeightsError(
                "the graph normalises its images itself; leave out "
                f"preprocessing={errors.shown(preprocessing)}"
            )
        by_hand = not isinstance(preprocessing, str)
        pixels = _by_hand(*preprocessing) if by_hand else layouts.PIXELS[preprocessing]
        if authors is not None and (by_hand or preprocessing in ("caffe", "features")):
            pixels = dataclasses.replace(pixels, bgr=authors.bgr)  # the kernels tell
    else:
        published = normalised or _of_published(match, tensors, sha256)
        pixels = published or _of_names(match, tensors, chain)
    if isinstance(pixels, str):
        unknown.append(pixels)
        missing.append(f"preprocessing= (--preprocessing) one of {known}")
        pixels = layouts.PIXELS[match.layout.pixels]
    side = None if chain is None else chain.side
    side = side or _trained_side(match, tensors, pixels)
    if side is None and not has_size:
        unknown.append(
            "its FC layers do not tell the size of the images that it was trained on"
        )
        missing.append("crop_size= and test_scale= (--crop-size, --test-scale)")
    if missing:
        raise UntoldError(f"{'; '.join(unknown)}: say {', and '.join(missing)}")
    if side == pixels.preprocessing.crop_size:
        return pixels
    sizes = {"test_scale": side or 32, "crop_size": side or 32}
    sized = dataclasses.replace(pixels.preprocessing, **sizes)
    return dataclasses.replace(pixels, preprocessing=sized)


def _by_hand(mean: Sequence[float], std: Sequence[float]) -> Pixels:
    try:
        values = tuple(map(float, mean)), tuple(map(float, std))
        return Pixels(Preprocessing(*values, layouts.TORCHVISION.test_scale, 224))
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"mean={errors.shown(mean)}, std={errors.shown(std)} (--mean, --std): "
            "expected three numbers each, or one for grey, of pixels in [0, 1]; std "
            "above 0"
        ) from error


def _of_published(match: Match, tensors: Tensors, sha256: str) -> Pixels | None:
    """Those of a published net that is known by its numbers, whatever it is called."""
    if sha256[:8] in _KNOWN_FILES:
        return layouts.PIXELS[_KNOWN_FILES[sha256[:8]]]
    authors = _of_authors(match, tensors)
    is_torchvisions = match.layout.name == "torchvision" and not (
        authors is not None and authors.bgr
    )
    if is_torchvisions and recognition.top_is_nan(match, tensors):
        return layouts.PIXELS["features"]  # torchvision's features-only VGG16
    return authors


def _of_names(match: Match, tensors: Tensors, chain: Chain | None) -> Pixels | str:
    """The lineage's; or why they are not told by its names."""
    layout = match.layout
    if chain is not None:
        layout = graph.lineage(match, chain.names) or layout
    if not layout.names_tell:
        return (
            f"the names of {layout.name} do not tell the pixels, and conv1_1 is not "
            "that of a published net"
        )
    return _unnormalised(match, layout, tensors) or layouts.PIXELS[layout.pixels]


def _unnormalised(match: Match, layout: layouts.Layout, tensors: Tensors) -> str:
    """Why a first kernel is not made for normalised pixels, as the names say; or ""."""
    kernel = _conv1_1(match, tensors, "kernel")
    if kernel is None or not kernel.size or layout.pixels == "caffe":
        return ""
    rms = float(np.sqrt(np.mean(np.square(kernel.astype(np.float64)))))
    # Kernels for pixels of deviation 1 are not a hundredth of what they need be. 27
    # inputs of deviation 1: below 0.005 the response is under 0.03 of a unit, which
    # only pixels of 0 to 255 would mend.
    if not 0 < rms < 0.005:
        return ""
    return (
        f"conv1_1's kernel has rms {rms:.2g}: it looks made for pixels of 0 to 255, "
        f"and {layout.name}'s names stand for normalised ones"
    )


def _of_authors(match: Match, tensors: Tensors) -> Pixels | None:
    """Caffe's, if conv1_1 is that of the authors' net, fine-tuned or rounded or not."""
    kernel, bias = (_conv1_1(match, tensors, leaf) for leaf in ("kernel", "bias"))
    if match.variant not in _AUTHORS or kernel is None or bias is None:
        return None
    biases, blue, red = _AUTHORS[match.variant]
    if kernel.ndim != 4 or not kernel.size or bias.size < len(biases):
        return None
    # Fine-tuning moves them by thousandths; biases of other nets are half a unit away.
    distance = np.abs(bias.ravel()[: len(biases)].astype(np.float64) - biases).max()
    if not distance <= 0.05:  # nor NaN
        return None
    first = float(kernel[0, 0, 0, 0])  # the first whatever the order of the axes
    caffe = layouts.PIXELS["caffe"]
    return dataclasses.replace(caffe, bgr=abs(first - blue) < abs(first - red))


def _trained_side(match: Match, tensors: Tensors, pixels: Pixels) -> int | None:
    """The side of the images whose last map is fc6's window; None: not told.

    Convolutions alone are of nets as their lineage publishes them.
    """
    if match.head == "none":
        return pixels.preprocessing.crop_size
    slot = recognition.top_slots(match)[0]
    if slot.foreign not in match.names:
        return _side_of_another_head(match, tensors)
    if match.head == "gap":
        return None
    layout, first = match.layout, tensors[match.names[slot.foreign]]
    is_known = slot.layer in layout.convolutional or first.shape[:2] == (1, 1)
    if first.ndim == 4 and not is_known:
        return None  # another net's, whose classifier is convolutional
    try:
        kernel = axes.turn(layout, slot, first, recognition.channels(match, tensors))
    except ValueError:
        return None
    height, width = kernel.shape[:2]
    if height == 1 and not (
        layout.names_tell and _of_authors(match, tensors) is None
    ):  # fine-tuned in Keras: as often after global pooling as at 32 pixels
        return None
    return 32 * height if height == width else None  # five pools


def _side_of_another_head(match: Match, tensors: Tensors) -> int | None:
    """By the one matrix of a head that takes a window of the last convolution's."""
    channels, sides = recognition.channels(match, tensors), set()
    for name, found in match.names.items():
        array = tensors[found]
        if recognition.is_of_head(match.layout, name) and array.ndim == 2:
            inputs = array.shape[match.layout.dense.index("I")]
            window = axes.window_of(inputs, channels)
            if window > 1:
                sides.add(32 * window)
    return sides.pop() if len(sides) == 1 else None


def _conv1_1(match: Match, tensors: Tensors, leaf: str) -> np.ndarray | None:
    every = layouts.slots(match.layout, match.variant)
    slot = next(s for s in every if (s.layer, s.leaf) == ("conv1_1", leaf))
    return tensors.get(match.names.get(slot.foreign, ""))
