"""BatchNorm folded into the convolutions: the same function in fewer operations."""

from typing import Any

import jax
import numpy as np

from vgg_flax import errors, model
from vgg_flax.images import resize
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.net import Net


class FoldingError(errors.VGGFlaxError):
    """A net without BatchNorm."""


def fold_batch_norm(net: Net, images: np.ndarray | None = None) -> tuple[Net, float]:
    """The variant without BatchNorm (`vgg16_bn` -> `vgg16`) with the same logits.

    With running statistics BatchNorm is linear, channel by channel, and so part of the
    convolution before it: `kernel * g` and `(bias - mean) * g + bn_bias`, where
    `g = scale / sqrt(var + epsilon)`. Computed in float64, stored as the params were.

    Args:
      net: of a variant with BatchNorm; its convolutions may lack a bias.
      images: what to compare logits on, as `net` takes them; by default four images
        of smooth noise, always the same.

    Returns:
      The folded net; and by how much its logits differ: the largest difference, as a
      share of the logits' largest deviation from their mean over the images.

    Raises:
      FoldingError: the variant has no BatchNorm.
    """
    if not model.VARIANTS[net.variant].batch_norm:
        raise FoldingError(
            f"{net.source or 'the net'} is {net.variant}, which has no BatchNorm to "
            "fold; expected a variant whose name ends in _bn"
        )
    variant = net.variant.removesuffix("_bn")
    folded = net.replace(
        variables={"params": fold(net.variables)},
        model=net.model.clone(variant=variant, conv_bias=True, batch_norm_axis=None),
    )
    images = smooth_noise(net.preprocessing) if images is None else images
    with jax.default_matmul_precision("highest"):
        before, after = (np.asarray(n(images), np.float64) for n in (net, folded))
    spread = np.abs(before - before.mean(axis=0, keepdims=True)).max()
    return folded, float(np.abs(after - before).max() / spread)


def smooth_noise(preprocessing: Preprocessing) -> np.ndarray:
    """Four images that differ as photos do, in patches: uint8, as test views are."""
    size, channels = preprocessing.crop_size, preprocessing.channels
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 6, channels), np.uint8)
    return np.stack([resize.resize(image, size, size) for image in coarse])


def fold(variables: dict[str, Any]) -> dict[str, Any]:
    """The variables without BatchNorm, as NumPy arrays."""
    params, statistics = variables["params"], variables["batch_stats"]
    folded = {name: p for name, p in params.items() if not name.startswith("bn")}
    for name in statistics:
        convolution = name.replace("bn", "conv")
        folded[convolution] = _fold_layer(
            params[convolution], params[name], statistics[name]
        )
    return folded


def _fold_layer(
    convolution: dict[str, Any], norm: dict[str, Any], statistics: dict[str, Any]
) -> dict[str, np.ndarray]:
    dtype = convolution["kernel"].dtype
    kernel, scale, shift, mean, var = (
        np.asarray(x, np.float64)
        for x in (
            convolution["kernel"],
            norm["scale"],
            norm["bias"],
            statistics["mean"],
            statistics["var"],
        )
    )
    bias = np.asarray(convolution.get("bias", 0), np.float64)
    gain = scale / np.sqrt(var + model.BATCH_NORM_EPSILON)
    return {
        "kernel": (kernel * gain[None, None, None]).astype(dtype),
        "bias": ((bias - mean) * gain + shift).astype(dtype),
    }
