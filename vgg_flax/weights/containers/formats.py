"""`read`: a weight file of any format to `{name: array}`, recognised by its content.

Nothing here or in the readers knows of VGG, of layers, or of who wrote the file.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vgg_flax.weights import WeightsError, checksum
from vgg_flax.weights.containers import (
    caffe_file,
    hdf5_file,
    mapped_file,
    onnx_chain,
    onnx_file,
    onnx_layers,
    safetensors_file,
    torch_file,
)


@dataclasses.dataclass(frozen=True)
class Container:
    """What a weight file holds.

    Attributes:
      path: where it lies.
      entries: its sets of tensors, by the names that a training checkpoint gives them
        ("model", "model_ema"); a file that is one set gives none: "". Each set's
        tensors are by the names in the file. Most are read-only views of it (see
        `mapped_file`), as they lie there: not always aligned or contiguous, or of the
        machine's byte order.
      format: of `READERS`.
      sha256: of the file, in hex.
      metadata: text that the format lets a writer add: safetensors' `__metadata__`,
        HDF5's root attributes, a zip file's `extra/`, ONNX's `metadata_props`.
      chain: what the graph is, of a format that has one.
    """

    path: str
    entries: mapped_file.Entries
    format: str
    sha256: str
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    chain: onnx_layers.Chain | None = None

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Those of the one set there is; raises WeightsError where there are more."""
        return self.entry(None)

    def entry(self, name: str | None) -> dict[str, np.ndarray]:
        """The tensors of a set; None: of the one there is.

        Raises:
          WeightsError: listing the sets, where there is none of that name, or several
            to choose from.
        """
        names = ", ".join(key or "''" for key in self.entries)
        if name is None and len(self.entries) > 1:
            raise WeightsError(
                f"{self.path} holds several sets of tensors: {names}; say which by "
                "entry= (--entry)"
            )
        if name is not None and name not in self.entries:
            raise WeightsError(
                f"{self.path} has no entry {name!r}; it has "
                + (names if any(self.entries) else "one set of tensors, without a name")
            )
        return next(iter(self.entries.values())) if name is None else self.entries[name]


class Reader(NamedTuple):
    """A format: whether a file is in it, and what it holds."""

    format: str
    recognises: Callable[[mapped_file.MappedFile], bool]
    read: Callable[[mapped_file.MappedFile], mapped_file.Content | onnx_layers.Chain]


READERS = (
    Reader("hdf5", hdf5_file.recognises, hdf5_file.read),
    Reader("torch_zip", torch_file.is_zip, torch_file.read_zip),
    Reader("torch_legacy", torch_file.is_legacy, torch_file.read_legacy),
    Reader("safetensors", safetensors_file.recognises, safetensors_file.read),
    # These have no magic number, so they are asked last.
    Reader("onnx", onnx_file.recognises, onnx_chain.read),
    Reader("caffemodel", caffe_file.recognises, caffe_file.read),
)

_DOWNLOAD_AGAIN = "download the file itself again"
_LOOKALIKES = (  # how it starts, what it is, what to do
    (b"version https://git-lfs", "a git-lfs pointer, not the file", "run git lfs pull"),
    (b"<!doctype html", "a web page", _DOWNLOAD_AGAIN),
    (b"<html", "a web page", _DOWNLOAD_AGAIN),
    (b"<?xml", "XML, often a server's error message", _DOWNLOAD_AGAIN),
    (b"{", "JSON", "give the file of weights that it describes"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (b"\x80", "a bare pickle", "save its tensors with safetensors, which runs no code"),
    (b"\x93numpy", "a NumPy array", "save named tensors with safetensors"),
)


def read(path: str | os.PathLike[str]) -> Container:
    """Reads a weight file in one of the formats of `READERS`, whatever its name.

    Raises:
      WeightsError: no such file, none of the formats, damaged, unsafe, or not what the
        hash in its name promises; naming the file and a remedy.
    """
    return read_file(mapped_file.MappedFile(path))


def read_file(file: mapped_file.MappedFile) -> Container:
    """As `read`, of a file that is mapped already."""
    reader = next((r for r in READERS if r.recognises(file)), None)
    if reader is None:
        raise _not_recognised(file)
    sha256 = checksum.of_file(file.path)
    checksum.check_name_hash(file.path, sha256)
    found, chain = reader.read(file), None
    if isinstance(found, onnx_layers.Chain):
        found, chain = mapped_file.Content({"": found.tensors}, found.metadata), found
    entries = found.entries
    if not any(entries.values()):
        raise WeightsError(
            f"{file.path} ({reader.format}) holds no tensors; expected named weights"
        )
    every = [t for tensors in entries.values() for t in tensors.values()]
    file.check_unfolded(sum(tensor.nbytes for tensor in every))
    return Container(
        str(file.path), entries, reader.format, sha256, found.metadata, chain
    )


def _not_recognised(file: mapped_file.MappedFile) -> WeightsError:
    head = file.head(512)
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    for start, what, remedy in _LOOKALIKES:
        if text.startswith(start):
            return WeightsError(f"{file.path} is {what}; {remedy}")
    if head[257:262] == b"ustar":
        return WeightsError(f"{file.path} is a tar archive; unpack it")
    return WeightsError(
        f"{file.path} starts with {head[:8]!r}, as none of the formats that are read: "
        f"{', '.join(reader.format for reader in READERS)}; it is something else, or "
        "damaged: download it again"
    )
