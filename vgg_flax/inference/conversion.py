"""`vgg-flax convert`: a net as a checkpoint, as ONNX, or out under a peer's names."""

import dataclasses
import os
import pathlib

import numpy as np

from vgg_flax import storage
from vgg_flax.inference import onnx_export
from vgg_flax.model import VARIANTS
from vgg_flax.net import Net
from vgg_flax.runs import checkpoint
from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import writers
from vgg_flax.weights.lineages import layouts, mapping, metadata

# Format -> by the file's suffix, the lineage whose names and axes it has.
FORMATS = {
    "torchvision": {".safetensors": "torchvision", ".pth": "torchvision"},
    "timm": {".safetensors": "timm", ".pth": "timm"},
    "keras": {".h5": "Keras applications", ".weights.h5": "Keras 3"},
}
_READ_ALONE = (".pt", ".bin", ".hdf5", ".keras", ".caffemodel", ".npz")
_EXPECTED = (
    "expected a name in .safetensors, .pth, .h5 (as Keras 2 wrote it), .weights.h5 "
    "(Keras 3) or .onnx, or a run directory: a name without a suffix"
)


def save(
    net: Net,
    target: str | os.PathLike[str],
    format: str | None = None,
    input: str | None = None,
) -> str:
    """Writes `net` to `target`, whole or not at all; returns what it wrote, in words.

    Args:
      net: to be written.
      target: a file ending in .safetensors, .pth, .h5 (as Keras 2 wrote it),
        .weights.h5 (as Keras 3 does) or .onnx, in small letters or capitals, or else
        a new run directory.
      format: a key of `FORMATS`; None: by the suffix, torchvision's for .safetensors
        and .pth, Keras's for .h5, and a checkpoint otherwise.
      input: of ONNX, as of `onnx_export.save`; None: "uint8".

    Raises:
      WeightsError: a suffix of letters that is none of these, the format does not go
        with the suffix or has no place for a leaf, or `target` exists.
      CheckpointError: the checkpoint cannot be written.
    """
    path = pathlib.Path(target)
    format = _format_of(path, format)
    if path.suffix.lower() == ".onnx":
        return onnx_export.save(net, path, input or "uint8")
    if input is not None:
        raise WeightsError(
            f"{path}: input={input!r} (--input) is of .onnx; leave it out"
        )
    if format is None:
        checkpoint.save_variables(path, net.variables, net.card.to_json())
        return f"a checkpoint; vgg_flax.load({str(path)!r}) reads it"
    if net.model.until is not None:
        raise WeightsError(
            f"{path}: a net that ends with {net.model.until} has no name among "
            f"{format}'s; write a checkpoint: a name without a suffix"
        )
    suffix = _suffix(path)
    layout = layouts.BY_NAME[FORMATS[format][suffix]]
    # Keras's nets want blue first; a net made for other pixels stays in RGB, and the
    # file says so. At which size is no matter of channels.
    native = layouts.PIXELS[layout.pixels]
    sizes = {n: getattr(net.preprocessing, n) for n in ("test_scale", "crop_size")}
    at_its_sizes = dataclasses.replace(native.preprocessing, **sizes)
    is_native = net.preprocessing == at_its_sizes
    bgr = native.bgr and is_native
    if not net.model.conv_bias:
        net = _with_zero_biases(net)  # the peers' modules have them
    tensors = mapping.to_tensors(net.variables, net.model, layout, bgr=bgr)
    write = writers.WRITERS[suffix]
    with storage.whole_file(path, WeightsError) as temporary:
        write(temporary, tensors, metadata.write(net.card, bgr=bgr))
    summary = f"{format}'s names and pixels"
    if not is_native:
        rgb = ", RGB" if net.preprocessing.channels == 3 else ""
        pixels = f"feed it {net.preprocessing}{rgb}"
        summary = f"{format}'s names, but not its pixels: {pixels}"
    elif at_its_sizes != native.preprocessing:
        summary += ", at test scale {test_scale}, crop {crop_size}".format(**sizes)
    is_unknown_there = VARIANTS[net.variant].lrn or "1x1" in net.variant
    if is_unknown_there or net.model.pooling != "max":
        summary += f"; no net of {format}'s computes what this one does"
    return summary


def check_target(target: str | os.PathLike[str]) -> None:
    """Raises WeightsError where `save` refuses the name, before there is a net."""
    _format_of(pathlib.Path(target), None)


def _format_of(path: pathlib.Path, format: str | None) -> str | None:
    """The key of `FORMATS` to write; None: a checkpoint.

    Raises:
      WeightsError: the name and the format do not go together, or `path` exists.
    """
    suffix = _suffix(path)
    if format is None:
        format = next(
            (f for f, suffixes in FORMATS.items() if suffix in suffixes), None
        )
    if suffix in _READ_ALONE:
        raise WeightsError(f"{path}: cannot be written; {_EXPECTED}")
    is_written = suffix == ".onnx" or format is not None
    if not is_written and suffix[1:].isalpha():  # runs/v1.2 is a directory
        raise WeightsError(
            f"{path}: nothing is known that ends in {suffix}; {_EXPECTED}"
        )
    if path.exists():
        raise WeightsError(f"{path} exists; choose another name, or remove it")
    if format is None:
        return None
    if format not in FORMATS:
        raise WeightsError(f"format {format!r}; known: {', '.join(FORMATS)}")
    if suffix not in FORMATS[format]:
        known = " or ".join(FORMATS[format])
        raise WeightsError(f"{path}: {format}'s files end in {known}")
    return format


def _suffix(path: pathlib.Path) -> str:
    """In small letters."""
    name = path.name.lower()
    return ".weights.h5" if name.endswith(".weights.h5") else path.suffix.lower()


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
