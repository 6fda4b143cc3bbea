"""Files of under 1 MB that ask for much: of work, memory, depth, or of a message.

By format and what they do; each is made when it is asked for. What is said of them is
true for a reader without a budget.
"""

from collections.abc import Callable

from tests.hostile import (
    crafted_caffe,
    crafted_hdf5,
    crafted_onnx,
    crafted_safetensors,
    crafted_torch,
)

# What a file is called whose name matters: one that names itself.
NAMES = {"onnx": "x.onnx"}
CRAFTED: dict[str, dict[str, Callable[[], bytes]]] = {
    "torch_zip": crafted_torch.TORCH_ZIP,
    "torch_legacy": crafted_torch.TORCH_LEGACY,
    "safetensors": crafted_safetensors.SAFETENSORS,
    "caffemodel": crafted_caffe.CAFFE,
    "onnx": crafted_onnx.ONNX,
    "hdf5": crafted_hdf5.HDF5,
}
