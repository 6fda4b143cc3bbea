"""What a file's graph tells besides its tensors: its pixels, and whose names it has."""

from collections.abc import Mapping

import numpy as np

from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VARIANTS
from vgg_flax.weights.containers.onnx_layers import Chain
from vgg_flax.weights.lineages import layouts
from vgg_flax.weights.lineages.layouts import Layout, Pixels
from vgg_flax.weights.lineages.recognition import Match


def pixels(chain: Chain, authors: Pixels | None) -> Pixels | str | None:
    """Those that the graph's own normalisation stands for.

    It gives the first layer `(image - mean) / std`. Images are of 0 to 255 if their
    type is uint8, or else if a mean or a deviation is above 1, which nothing in [0, 1]
    has.

    Args:
      authors: Caffe's, if the first kernel is that of the authors' nets, which tells
        its order of channels.

    Returns:
      Pixels, RGB; None where the graph takes images as they are; or why it cannot be
      told what images those are.
    """
    given = chain.normalization
    if given.is_identity or len(given.scale) not in (1, 3):
        return None
    scale, offset = np.asarray(given.scale), np.asarray(given.offset)
    mean, std = -offset / scale, 1 / scale
    top = max(*mean, *std)
    unit = 255 if given.is_uint8 or top > 1 else 1
    # Others may be of images in [-1, 1], or of what is none.
    is_plain = (mean >= 0).all() and (mean <= unit).all() and (std > 0).all()
    if not is_plain or (unit == 255 and not given.is_uint8 and top < 16):
        return (
            f"its graph makes (image - {_short(mean)}) / {_short(std)} of an image, "
            "and images in [0, 1] or of 0 to 255 would not need that"
        )
    mean, std = (np.asarray([float(f"{v / unit:.7g}") for v in a]) for a in (mean, std))
    if given.is_flipped:  # the image's channels -> the kernel's
        mean, std = mean[::-1], std[::-1]
    if authors is not None:
        bgr = authors.bgr
    else:
        bgr = given.is_flipped or _is_known_backwards(mean)
    if bgr:
        mean, std = mean[::-1], std[::-1]
    sizes = layouts.TORCHVISION.test_scale, layouts.TORCHVISION.crop_size
    return Pixels(Preprocessing(tuple(mean.tolist()), tuple(std.tolist()), *sizes), bgr)


def lineage(match: Match, names: Mapping[str, str]) -> Layout | None:
    """Whose names the kernels have in the graph, of those whose names tell the pixels.

    Args:
      names: the graph's, by those that `match.layout` gives.
    """

    def kernels(layout: Layout, variant: str) -> list[str]:
        every = layouts.slots(layout, variant, head=match.head)
        return [slot.foreign for slot in every if slot.leaf == "kernel"]

    plain = match.variant.removesuffix("_bn")
    variants = {plain, f"{plain}_bn"} & VARIANTS.keys()  # exporters fold BatchNorm
    found = [names.get(name, "") for name in kernels(match.layout, match.variant)]
    for layout in layouts.LAYOUTS:
        for variant in variants if layout.names_tell else ():
            expected = kernels(layout, variant)
            if all(f.endswith(e) for f, e in zip(found, expected, strict=True)):
                return layout
    return None


def _is_known_backwards(mean: np.ndarray) -> bool:
    known = (layouts.TORCHVISION.mean, layouts.CAFFE.mean)
    return any(np.allclose(mean[::-1], k, atol=2e-3, rtol=0) for k in known)


def _short(values: np.ndarray) -> str:
    return " ".join(f"{value:.4g}" for value in values)
