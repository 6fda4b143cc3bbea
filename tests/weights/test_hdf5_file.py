"""HDF5 files beyond plain ones: bombs, other files, plug-ins, bfloat16."""

import concurrent.futures
import contextlib
import os
import pathlib
import subprocess
import sys
import zlib

import h5py
import ml_dtypes
import numpy as np
from weight_files import DATA, WRITERS, assert_equal, little_memory, refusal

from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import formats, hdf5_file


def test_keras_marks_bfloat16(tmp_path: pathlib.Path):
    path = tmp_path / "weights.h5"
    array = np.arange(6).astype(ml_dtypes.bfloat16)
    with h5py.File(path, "w") as file:
        file.create_dataset("kernel", data=array).attrs["dtype"] = "bfloat16"
    assert_equal(formats.read(path).tensors, {"kernel": array})


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


def test_a_file_that_ends_libhdf5_does_not_end_us(tmp_path: pathlib.Path):
    """Its one chunked data set has a byte changed: HDF5 1.14.6 dies of it."""
    path = tmp_path / "good.h5"
    arrays = WRITERS["hdf5"][1](path)
    for _ in range(2):
        with contextlib.suppress(WeightsError):  # another version may read it
            assert formats.read(DATA / "ends_libhdf5.h5").tensors
        assert_equal(formats.read(path).tensors, arrays)


def test_a_listing_that_was_killed_starts_again(tmp_path: pathlib.Path):
    path = tmp_path / "good.h5"
    arrays = WRITERS["hdf5"][1](path)
    assert_equal(formats.read(path).tensors, arrays)
    process = hdf5_file.LISTER.process
    assert process
    process.kill()  # for want of memory, say
    process.wait()
    assert_equal(formats.read(path).tensors, arrays)


def test_threads_get_their_own_files(tmp_path: pathlib.Path):
    def read(i: int) -> bool:
        path = tmp_path / f"{i}.h5"
        with h5py.File(path, "w") as file:
            file["kernel"] = np.full(i + 1, i)
        return bool((formats.read(path).tensors["kernel"] == [i] * (i + 1)).all())

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(40)))


def test_the_listing_needs_no_working_directory_of_ours(tmp_path: pathlib.Path):
    """A file `h5py.py` beside the user's program is not run by the listing."""
    (tmp_path / "h5py.py").write_text("open('marker', 'w').close()")
    arrays = WRITERS["hdf5"][1](tmp_path / "good.h5")
    program = (
        "from vgg_flax.weights.containers import formats\n"
        "print(sorted(formats.read('good.h5').tensors))\n"
    )
    root = str(pathlib.Path(formats.__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(sorted(arrays)) and not done.stderr
    assert not (tmp_path / "marker").exists()
