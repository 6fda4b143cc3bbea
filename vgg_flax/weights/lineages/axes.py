"""A foreign array's axes as ours, and ours as a layout writes them."""

import math

import numpy as np

from vgg_flax.weights.lineages.layouts import Layout, Slot


def window_of(inputs: int, channels: int) -> int:
    """The side of the map of `channels` that was flattened to `inputs`; 0: of none."""
    side = math.isqrt(inputs // max(channels, 1))
    return side if side * side * channels == inputs else 0


def turn(layout: Layout, slot: Slot, array: np.ndarray, channels: int) -> np.ndarray:
    """A foreign array as ours, kernels HWIO: a view, wherever NumPy can give one.

    Args:
      channels: of the last convolution, to find the window in a flattened kernel.

    Raises:
      ValueError: it cannot be what the slot needs.
    """
    is_fc = slot.layer.startswith("fc")
    if array.ndim == 4 and is_fc and slot.layer not in layout.convolutional:
        # Caffe's first versions write every blob in 4-D: [1, 1, out, in].
        array = array.reshape(array.shape[2:]) if array.shape[:2] == (1, 1) else array
    if slot.leaf != "kernel":
        is_row = array.size == array.shape[-1] if array.ndim else False
        return array.reshape(-1) if is_row else array
    if not array.size:
        raise ValueError("is empty")
    if array.ndim == 4:
        return array.transpose([layout.kernel.index(axis) for axis in "HWIO"])
    if array.ndim != 2 or not is_fc:
        raise ValueError("not a kernel")
    sizes = {"H": 1, "W": 1, "C": array.shape[layout.dense.index("I")]}
    if slot.is_flat:
        side = window_of(sizes["C"], channels)
        if not side:
            raise ValueError(f"its input is no square window of {channels} channels")
        sizes = {"H": side, "W": side, "C": channels}
    axes = layout.dense.replace("I", layout.flatten)  # "OCHW" or "HWCO"
    sizes["O"] = array.shape[layout.dense.index("O")]
    turned = array.reshape([sizes[axis] for axis in axes])
    return turned.transpose([axes.index(axis) for axis in "HWCO"])


def turn_back(layout: Layout, slot: Slot, array: np.ndarray) -> np.ndarray:
    """One of our arrays as `layout` writes it; the inverse of `turn`."""
    if slot.leaf != "kernel":
        return array
    if slot.layer.startswith("conv") or slot.layer in layout.convolutional:
        return array.transpose(["HWIO".index(axis) for axis in layout.kernel])
    axes = layout.dense.replace("I", layout.flatten)
    turned = array.transpose(["HWCO".index(axis) for axis in axes])
    out = array.shape[-1]
    return turned.reshape((out, -1) if axes[0] == "O" else (-1, out))
