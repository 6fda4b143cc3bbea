"""A net that runs on JAX alone: a `jax.export` artifact, and a JSON file about it."""

import importlib.metadata
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import numpy as np

from vgg_flax import errors, spelling, storage
from vgg_flax.data import imagenet
from vgg_flax.net import Net
from vgg_flax.weights import WeightsError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class ExportError(errors.VGGFlaxError):
    """A platform JAX does not export for, or no folder to write to."""


def export(net: Net, platforms: Sequence[str] = ("cpu", "cuda", "tpu")) -> bytearray:
    """The net as StableHLO, its weights and its preprocessing inside.

    The function in it maps test views, uint8 `[batch, crop_size, crop_size, channels]`
    with any `batch` of at least 1, to logits, `[batch, num_classes]`, in the net's
    dtype at JAX's highest matmul precision, as `net(images)` does under
    `jax.default_matmul_precision("highest")`.

    Args:
      net: of whatever variant and classes.
      platforms: of `PLATFORMS`; none of them needs to be here.

    Returns:
      What `jax.export.deserialize` takes. JAX promises to read it for at least six
      months after the version that wrote it.

    Raises:
      ExportError: no platform, or an unknown one.
    """
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        raise ExportError(
            f"platforms {','.join(platforms)!r}: expected some of {','.join(PLATFORMS)}"
        )

    def logits(images: Any) -> jax.Array:
        return net(images)

    (batch,) = jax.export.symbolic_shape("batch")
    side = net.preprocessing.crop_size
    shape = (batch, side, side, net.preprocessing.channels)
    with jax.default_matmul_precision("highest"):
        exported = jax.export.export(jax.jit(logits), platforms=tuple(platforms))(
            jax.ShapeDtypeStruct(shape, np.uint8)
        )
    return exported.serialize()


def save(
    net: Net,
    path: str | os.PathLike[str],
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> int:
    """Writes `export(net, platforms)` to `path`, whole or not at all.

    `path` with `.json` appended says what JAX's file has no room for: the source and
    its sha256, the variant, the preprocessing with what comes before the crop (the
    resize and its scale), the classes' names, and the versions that wrote it.

    Returns:
      The artifact's size in bytes.

    Raises:
      ExportError: as `export`, there is no such folder, or a file that exists.
      WeightsError: a file can't be written.
    """
    target = pathlib.Path(path)
    if not target.parent.is_dir():  # before the work, which takes a while
        raise ExportError(f"{target}: there is no folder {target.parent}; make it")
    for file in (target, about_path := target.with_name(f"{target.name}.json")):
        if file.exists():
            raise ExportError(f"{file} exists; choose another name, or remove it")
    data = export(net, platforms)
    about = json.dumps(spelling.written(_describe(net, platforms)), indent=2) + "\n"
    with storage.whole_file(about_path, WeightsError) as temporary:
        temporary.write_text(about)
    with storage.whole_file(target, WeightsError) as temporary:
        temporary.write_bytes(data)
    return len(data)


def _describe(net: Net, platforms: Sequence[str]) -> dict[str, Any]:
    return {
        **net.card.identity(),
        "preprocessing": net.preprocessing.to_dict(),
        "platforms": list(platforms),
        "class_names": ()
        if net.model.head == "none"
        else imagenet.display_names(net.class_names, net.model.num_classes),
        "versions": {n: importlib.metadata.version(n) for n in ("jax", "vgg-flax")},
    }
