"""HDF5 files beyond plain ones: bombs, other files, plug-ins, bfloat16."""

import pathlib
import zlib

import h5py
import ml_dtypes
import numpy as np
from weight_files import assert_equal, little_memory, refusal

from vgg_flax.weights import containers


def test_keras_marks_bfloat16(tmp_path: pathlib.Path):
    path = tmp_path / "weights.h5"
    array = np.arange(6).astype(ml_dtypes.bfloat16)
    with h5py.File(path, "w") as file:
        file.create_dataset("kernel", data=array).attrs["dtype"] = "bfloat16"
    assert_equal(containers.read(path).tensors, {"kernel": array})


def test_an_hdf5_bomb_is_not_unpacked(tmp_path: pathlib.Path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:  # never written: a terabyte of zeros
        file.create_dataset("kernel", (1 << 38,), "f4", chunks=True, compression="gzip")
    assert "decompression bomb" in refusal(path)
    with h5py.File(path, "w") as file:  # each alone is small enough
        for i in range(20):
            file.create_dataset(f"kernel{i}", (1 << 22,), "f4")
    with little_memory(80 << 20):
        assert "decompression bomb" in refusal(path)
    with h5py.File(path, "w") as file:  # a chunk that holds more than it says
        dataset = file.create_dataset("kernel", (4,), "f4", chunks=(4,), compression=1)
        dataset.id.write_direct_chunk((0,), zlib.compress(bytes(40 << 20)))
    with little_memory():
        assert "another size" in refusal(path)


def test_hdf5_that_lies_elsewhere_or_went_through_a_plug_in(tmp_path: pathlib.Path):
    path = tmp_path / "x.h5"
    (tmp_path / "secret").write_bytes(bytes(16))
    with h5py.File(path, "w") as file:
        external = [(str(tmp_path / "secret"), 0, 16)]
        file.create_dataset("kernel", (4,), "f4", external=external)
    assert "other files" in refusal(path)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "kernel", (4,))
        file.create_virtual_dataset("kernel", layout)
    assert "other files" in refusal(path)
    with h5py.File(path, "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "kernel")
        file["soft"] = h5py.SoftLink("/nowhere")
    assert "no tensors" in refusal(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("kernel", data=np.ones(9), compression="lzf")
    assert "h5repack" in refusal(path)
