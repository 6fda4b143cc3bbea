"""Sources of labelled images: TFDS' data sets and our own digits, plain folders."""

from typing import Any, Protocol

from vgg_flax.errors import VGGFlaxError

# Of image files, in any case: those that Pillow decodes to pixels by itself.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".jpx", ".j2k"),
    *(".png", ".apng", ".gif", ".webp", ".avif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".tga"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)


class DataError(VGGFlaxError):
    """A data set, split, class count or image that does not fit the run."""


class RandomAccess(Protocol):
    """A fixed number of things, each to be had by its index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...
