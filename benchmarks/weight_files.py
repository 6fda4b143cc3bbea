"""Random weights in a file that every contender reads: torchvision's names and axes."""

import pathlib
from collections.abc import Iterator

import numpy as np

from vgg_flax.model import STAGE_WIDTHS
from vgg_flax.weights.containers import writers
from vgg_flax.weights.lineages import layouts


def write(
    folder: pathlib.Path,
    variant: str = "vgg16",
    width: float = 1.0,
    head: str = "fc",
    classes: int = 1000,
) -> pathlib.Path:
    """A file of `folder`, written at the first call: vgg16's is 553 MB.

    Args:
      folder: where to.
      variant: a key of `vgg_flax.VARIANTS`.
      width: factor of the convolutions' widths.
      head: "fc" with fc6's window of 7, or "gap".
      classes: outputs of the last layer.
    """
    path = folder / f"{variant}-{width}-{head}-{classes}.safetensors"
    if not path.exists():
        tensors = dict(_tensors(variant, width, head, classes))
        aside = path.with_suffix(".part")
        writers.write_safetensors(aside, tensors, {})
        aside.rename(path)
    return path


def _tensors(
    variant: str, width: float, head: str, classes: int
) -> Iterator[tuple[str, np.ndarray]]:
    """As He et al. would draw them, so that logits neither vanish nor explode."""
    rng = np.random.default_rng(0)
    layout = layouts.BY_NAME["torchvision"]
    inputs, outputs = 3, 0
    for slot in layouts.slots(layout, variant, head=head):
        shape: tuple[int, ...] = (outputs,)
        if slot.leaf == "kernel" and slot.window:
            outputs = round(STAGE_WIDTHS[int(slot.layer[4]) - 1] * width)
            shape = (outputs, inputs, slot.window, slot.window)
            inputs = outputs
        elif slot.leaf == "kernel":
            inputs *= 49 if slot.layer == "fc6" else 1
            outputs = classes if slot.layer == "fc8" else 4096
            shape = (outputs, inputs)
            inputs = outputs
        noise = rng.standard_normal(shape, np.float32)
        if slot.leaf == "kernel":
            yield slot.foreign, noise * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        else:  # scales and variances near 1, biases and means near 0
            near = 1.0 if slot.leaf in ("scale", "var") else 0.0
            yield slot.foreign, (near + 0.05 * noise).astype(np.float32)
