"""Named tensors -> files that the peers read: safetensors, and Keras's legacy HDF5."""

import pathlib
from collections.abc import Mapping

import numpy as np

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
                array = tensors[name]
                dataset = group.create_dataset(f"{name}:0", data=array)
                if array.dtype.name == "bfloat16":  # HDF5 has none; Keras marks it so
                    dataset.attrs["dtype"] = "bfloat16"


WRITERS = {".safetensors": write_safetensors, ".h5": write_keras}
