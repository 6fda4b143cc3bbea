"""Named tensors -> files that the peers read: safetensors, PyTorch's, Keras's HDF5."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vgg_flax.weights.containers import torch_writer

_Tensors = Mapping[str, np.ndarray]


def write_safetensors(
    path: pathlib.Path, tensors: _Tensors, metadata: dict[str, str]
) -> None:
    """With `metadata` in the header, where `formats.read` finds it."""
    import safetensors.numpy

    safetensors.numpy.save_file(dict(tensors), path, {"format": "pt", **metadata})


def write_keras(
    path: pathlib.Path, tensors: _Tensors, metadata: dict[str, str]
) -> None:
    """The layout of Keras 2's `save_weights`: what `load_weights` reads by order."""
    import h5py

    layers: dict[str, list[str]] = {}
    for name in tensors:  # "block1_conv1/kernel", in the order of the layers
        layers.setdefault(name.split("/")[0], []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.15.0"
        for key, value in metadata.items():
            file.attrs[key] = value
        for layer, names in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name in names:
                _add(group, f"{name}:0", tensors[name])


def write_keras3(
    path: pathlib.Path, tensors: _Tensors, metadata: dict[str, str]
) -> None:
    """The layout of Keras 3's `save_weights`: data sets `layers/conv2d/vars/0`."""
    import h5py

    with h5py.File(path, "w") as file:
        for key, value in metadata.items():
            file.attrs[key] = value
        for name, array in tensors.items():
            _add(file, name, array)


def _add(group: Any, name: str, array: np.ndarray) -> None:
    dataset = group.create_dataset(name, data=array)
    if array.dtype.name == "bfloat16":  # HDF5 has none; Keras marks it so
        dataset.attrs["dtype"] = "bfloat16"


WRITERS = {
    ".safetensors": write_safetensors,
    ".pth": torch_writer.write,
    ".h5": write_keras,
    ".weights.h5": write_keras3,
}
