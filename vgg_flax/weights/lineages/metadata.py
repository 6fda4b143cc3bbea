"""What the weight files that we write say of themselves, in one entry of JSON."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VGG
from vgg_flax.weights import WeightsError

KEY = "vgg_flax"


class Told(NamedTuple):
    """What the metadata of a file that we wrote says: see `net.meta_of`.

    Attributes:
      model: the module.
      preprocessing: the pixels.
      bgr: whether conv1_1's input axis is written blue first.
      class_names: in the order of the logits.
      train_scale: S, (low, high), or None.
    """

    model: VGG
    preprocessing: Preprocessing
    bgr: bool
    class_names: tuple[str, ...]
    train_scale: tuple[int, int] | None


def write(meta: Mapping[str, Any], *, bgr: bool) -> dict[str, str]:
    """What a file that we write says of its net; JSON in one string."""
    return {KEY: json.dumps({**meta, "bgr": bgr})}


def read(metadata: Mapping[str, str]) -> Told | None:
    """What `write` wrote; None for files of others.

    Raises:
      WeightsError: there is an entry of ours, and it is damaged.
    """
    if KEY not in metadata:
        return None
    try:
        told = json.loads(metadata[KEY])
        settings, scale = told["model"], told["train_scale"]
        net = VGG(**{**settings, "fc_widths": tuple(settings["fc_widths"])})
        leaf_shapes(net)  # a damaged setting fails here
        return Told(
            model=net,
            preprocessing=Preprocessing.from_dict(told["preprocessing"]),
            bgr=bool(told["bgr"]),
            class_names=tuple(str(name) for name in told["class_names"]),
            train_scale=None if scale is None else (int(scale[0]), int(scale[1])),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"the metadata {KEY!r} of the file is damaged: {error!r:.200}"
        ) from error


def leaf_shapes(net: VGG) -> dict[str, tuple[int, ...]]:
    """The shape of each of `net`'s leaves; nothing is computed."""
    side = net.smallest_image
    images = jax.ShapeDtypeStruct((1, side, side, net.in_channels), net.param_dtype)
    variables: Any = jax.eval_shape(net.init, jax.random.key(0), images)
    flat: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}
