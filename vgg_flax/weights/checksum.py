"""sha256 of weight files, and the piece of it that some names carry."""

import hashlib
import os
import pathlib
import re

from vgg_flax.weights import WeightsError

# `vgg16-397923af.pth`: torchvision, torch.hub and OpenMMLab end a name in the first 8
# hex digits of the file's sha256. pytorchcv's `vgg16-0785-xxxxxxxx.pth` looks alike but
# ends in sha1's; and a date, `vgg16-20240131.pth`, is no hash.
_HASH_SUFFIX = re.compile(r"(?<!-\d{4})-([0-9a-f]{8})\.(?:pth|pt|bin|safetensors)$")
_DATE = re.compile(r"(?:19|20)\d\d(?:0\d|1[0-2])(?:[0-2]\d|3[01])")


def of_file(path: str | os.PathLike[str]) -> str:
    """The file's sha256 in hex, read in pieces."""
    with pathlib.Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def in_name(path: str | os.PathLike[str]) -> str | None:
    """The 8 hex digits that the file's name says its sha256 starts with, if it does."""
    name = pathlib.Path(path).name
    match = _HASH_SUFFIX.search(name)
    if not match or _DATE.fullmatch(match[1]):
        return None
    # vgg13-19584684.pth is torchvision's; step-00010000.pth is nobody's hash.
    is_count = match[1].isdigit() and not name.startswith("vgg")
    return None if is_count else match[1]


def check_name_hash(
    path: str | os.PathLike[str], sha256: str, source: str | None = None
) -> None:
    """Raises WeightsError if the file's name promises another sha256 than it has.

    Args:
      path: the file; only its name is looked at.
      sha256: what the file has.
      source: what the message calls the file; `path` if None.
    """
    promised = in_name(path)
    if promised and not sha256.startswith(promised):
        raise WeightsError(
            f"{source or path}: its name says that its sha256 starts with {promised}, "
            f"and it is {sha256}: the file is damaged or incomplete, or was renamed; "
            "download it again, or name it without the hash if the change was yours"
        )


def check(source: str | os.PathLike[str], sha256: str, expected: str) -> None:
    """Raises WeightsError if the sha256 of `source` is not the expected one."""
    if sha256 != expected.lower():
        raise WeightsError(
            f"{source}: its sha256 is {sha256}, expected {expected.lower()}: the file "
            "is damaged, incomplete or another one; download it again"
        )
