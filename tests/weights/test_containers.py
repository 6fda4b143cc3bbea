"""Reading weight files of every format, whole, renamed, foreign and damaged.

Every format goes through the same tests: what was saved comes back, under any file
name; no mutation of a file ends otherwise than in a WeightsError or a whole read.
"""

import gzip
import hashlib
import json
import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
from weight_files import DATA, WRITERS, assert_equal, is_mapped, refusal, write_torch

from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import formats as formats_lib
from vgg_flax.weights.containers.formats import READERS

every_writer = pytest.mark.parametrize("writer", WRITERS)


@every_writer
def test_what_was_saved_comes_back_under_any_name(writer: str, tmp_path: pathlib.Path):
    file_format, write = WRITERS[writer]
    for name in ("weights", "weights.txt", "weights.h5", "weights.pth"):
        path = tmp_path / name
        arrays = write(path)
        container = formats_lib.read(path)
        assert_equal(container.tensors, arrays)
        assert container.format == file_format
        assert container.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@every_writer
def test_tensors_are_read_only_views_of_the_file(writer: str, tmp_path: pathlib.Path):
    if writer in ("hdf5_chunked", "caffe_unpacked"):  # not in one piece
        return
    path = tmp_path / "weights"
    WRITERS[writer][1](path)
    container = formats_lib.read(path)
    path.unlink()  # a replaced file does not change what was read from it
    for name, array in container.tensors.items():
        assert not array.size or is_mapped(array), name
        assert not array.flags.writeable, name


def test_views_know_each_other(tmp_path: pathlib.Path):
    path = tmp_path / "weights"
    write_torch("state_dict_zip")(path)
    tensors = formats_lib.read(path).tensors
    assert np.shares_memory(tensors["shared"], tensors["shared_part"])


def test_every_reader_has_files_here():
    formats = {file_format for file_format, _ in WRITERS.values()}
    assert formats == {reader.format for reader in READERS}


# Files that are none


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x00", "none of the formats"),
        (b"PK", "none of the formats"),
        (b"\x89HDF\r\n\x1a\n", "damaged"),
        (b"PK\x03\x04" + bytes(99), "damaged"),
        (bytes(1000), "none of the formats"),
        (b"\n\n<!DOCTYPE html><html><body>Quota exceeded", "web page"),
        (b"<html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "server's error"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
            "git lfs pull",
        ),
        (json.dumps({"weight_map": {}}).encode(), "JSON"),
        (gzip.compress(b"x" * 99, mtime=0), "gunzip"),
        (pickle.dumps({"a": np.ones(3)}), "bare pickle"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_no_weight_file(content: bytes, words: str, tmp_path: pathlib.Path):
    assert words in refusal(tmp_path / "vgg16.pth", content)


def test_other_paths(tmp_path: pathlib.Path):
    assert "is a directory" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "missing.pth")
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(tmp_path / "loop")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(DATA / "state_dict_zip.pth", "x.pth")
    assert "tar archive" in refusal(path)


# Checksums


@pytest.mark.parametrize(
    ("name", "is_good"),
    [
        ("vgg16-{right}.pth", True),
        ("vgg16_batch256_imagenet_20210208-{right}.pth", True),
        ("vgg16-00000000.pth", False),
        ("vgg16-{right}0.pth", True),  # nine digits are not torchvision's
        ("vgg16-20240131.pth", True),  # a date
        ("vgg16-0785-00000000.pth", True),  # pytorchcv: of sha1
        ("vgg16-00000000.txt", True),
    ],
)
def test_the_hash_in_the_name_is_kept(name: str, is_good: bool, tmp_path: pathlib.Path):
    content = (DATA / "state_dict_zip.pth").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    path = tmp_path / name.format(right=sha256[:8])
    path.write_bytes(content)
    if is_good:
        assert formats_lib.read(path).sha256 == sha256
    else:
        message = refusal(path)
        assert "starts with 00000000" in message and sha256 in message


# Damage


def mutations(content: bytes, seed: int, count: int) -> list[bytes]:
    """Damaged copies: in the payload, and as often in the first or last kilobyte."""
    rng = np.random.default_rng(seed)
    extremes = (0, 1, 0x7F, 0xFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
    mutants = []
    for i in range(count):
        size = len(content)
        spans = ((0, size), (0, min(size, 1024)), (max(0, size - 1024), size))
        at = int(rng.integers(*spans[i % 3]))
        damaged = bytearray(content)
        kind = rng.integers(6)
        if kind == 0:
            for _ in range(rng.integers(1, 9)):
                damaged[rng.integers(*spans[i % 3])] = rng.integers(256)
        elif kind == 1:
            damaged[at] ^= 1 << rng.integers(8)
        elif kind == 2:
            del damaged[at:]
        elif kind == 3:
            damaged[at:at] = rng.bytes(rng.integers(1, 20))
        elif kind == 4:
            del damaged[at : at + rng.integers(1, 20)]
        else:
            width = int(rng.choice([1, 2, 4, 8]))
            number = extremes[rng.integers(len(extremes))] % 2 ** (8 * width)
            damaged[at : at + width] = number.to_bytes(width, "little")
        mutants.append(bytes(damaged))
    return mutants


@every_writer
def test_damaged_files_are_refused_or_read_whole(writer: str, tmp_path: pathlib.Path):
    path = tmp_path / "weights"
    WRITERS[writer][1](path)
    content, refused = path.read_bytes(), 0
    for damaged in mutations(content, seed=4, count=300):
        path.unlink()  # what was read before stays mapped
        path.write_bytes(damaged)
        try:
            container = formats_lib.read(path)
        except WeightsError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert container.tensors
            for array in container.tensors.values():
                assert len(array.tobytes()) == array.nbytes
    assert 30 < refused < 300, "the damage is all or nothing"


@every_writer
def test_cut_off_files_are_refused(writer: str, tmp_path: pathlib.Path):
    path = tmp_path / "weights"
    WRITERS[writer][1](path)
    content = path.read_bytes()
    # protobuf does not say how long a file is: only a cut inside a field shows.
    cuts = (
        [1, 2, 5]
        if writer.startswith(("caffe", "onnx"))
        else range(1, len(content), 97)
    )
    for cut in cuts:
        refusal(path, content[:-cut])
