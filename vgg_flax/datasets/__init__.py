"""Sources of labelled images: our own TFDS builder, tfrecord files, plain folders."""

from typing import Any, Protocol


class RandomAccess(Protocol):
    """A fixed number of things, each to be had by its index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...
