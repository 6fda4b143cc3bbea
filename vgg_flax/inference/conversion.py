"""`vgg-flax convert`: a net as a checkpoint, or out under a peer's names."""

import os
import pathlib

import numpy as np

from vgg_flax.model import VARIANTS
from vgg_flax.net import Net, meta_of
from vgg_flax.runs import checkpoint
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import writers
from vgg_flax.weights.lineages import layouts, mapping, metadata

# Format -> the lineage whose names and axes it has, and the file's suffix.
FORMATS = {
    "torchvision": ("torchvision", ".safetensors"),
    "timm": ("timm", ".safetensors"),
    "keras": ("Keras applications", ".h5"),
}


def convert(net: Net, target: str | os.PathLike[str], format: str | None = None) -> str:
    """Writes `net` to `target`, whole or not at all; returns what it wrote, in words.

    Args:
      net: to be written.
      target: a file ending in .safetensors or .h5, or else a new run directory.
      format: a key of `FORMATS`; None: by the suffix, torchvision's for .safetensors,
        Keras's for .h5, and a checkpoint otherwise.

    Raises:
      WeightsError: the format does not go with the suffix or has no place for a
        leaf, or `target` exists.
      CheckpointError: the checkpoint cannot be written.
    """
    path = pathlib.Path(target)
    suffixes = {suffix for _, suffix in FORMATS.values()}
    if format is None and path.suffix in suffixes:
        format = next(f for f, (_, suffix) in FORMATS.items() if suffix == path.suffix)
    strange = (".pth", ".pt", ".bin", ".hdf5", ".keras", ".caffemodel", ".npz")
    if path.suffix in strange or path.name.endswith(".weights.h5"):
        raise WeightsError(
            f"{path}: cannot be written; expected a name in .safetensors or .h5 (as "
            "Keras 2 wrote it), or a run directory"
        )
    if path.exists():
        raise WeightsError(f"{path} exists; choose another name, or remove it")
    if format is None:
        checkpoint.save_variables(path, net.variables, meta_of(net))
        return f"a checkpoint; vgg_flax.load({str(path)!r}) reads it"
    if format not in FORMATS:
        raise WeightsError(f"format {format!r}; known: {', '.join(FORMATS)}")
    lineage, suffix = FORMATS[format]
    if path.suffix != suffix:
        raise WeightsError(f"{path}: {format}'s files end in {suffix}")
    layout = layouts.BY_NAME[lineage]
    # Keras's nets want blue first; a net made for other pixels stays in RGB, and the
    # file says so.
    native = layouts.PIXELS[layout.pixels or ""]
    is_native = net.preprocessing == native.preprocessing
    bgr = native.bgr and is_native
    if not net.model.conv_bias and layout.norm:
        net = _with_zero_biases(net)  # the peers' modules have them
    tensors = mapping.to_tensors(net.variables, net.model, layout, bgr=bgr)
    said_of_it = metadata.write(meta_of(net), bgr=bgr)
    write = writers.WRITERS[suffix]
    with writers.whole_file(path) as temporary:
        write(temporary, tensors, said_of_it)
    said = f"{format}'s names and pixels"
    if not is_native:
        said = f"{format}'s names, but not its pixels: feed it {net.preprocessing}, RGB"
    own = VARIANTS[net.variant].lrn or "1x1" in net.variant
    if own or net.model.pooling != "max":
        said += f"; no net of {format}'s computes what this one does"
    return said


def _with_zero_biases(net: Net) -> Net:
    params = {
        name: {**leaves, "bias": np.zeros(leaves["kernel"].shape[-1:], np.float32)}
        if name.startswith("conv")
        else leaves
        for name, leaves in net.variables["params"].items()
    }
    return net.replace(
        model=net.model.clone(conv_bias=True),
        variables={**net.variables, "params": params},
    )
