"""A split of a data set: labelled images in a fixed order, opened by name."""

import dataclasses
import hashlib
import types
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vgg_flax.config import DataConfig
from vgg_flax.data import DataError, RandomAccess, folder, prepared


@dataclasses.dataclass(frozen=True)
class Split:
    """Labelled images in a fixed order.

    Attributes:
      name: such as "digits/train[:90%]".
      records: each `{"image": bytes, "label": int, "key": str}`.
      class_names: in the order of the labels.
    """

    name: str
    records: Any  # RandomAccess; grain's own protocol wants more of it
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)


def open_split(config: DataConfig, split: str, num_classes: int) -> Split:
    """Opens `split` ("train", "train[:90%]", "train[:5]+test") of the data set.

    Raises:
      DataError: no such data set or split, not prepared, empty, or its number of
        classes is not `num_classes`.
    """
    opened = open_any_split(config.name, config.data_dir, split, num_classes)
    if len(opened.class_names) != num_classes:
        count = len(opened.class_names)
        raise DataError(
            f"{opened.name} has {count} classes, and config.model.num_classes="
            f"{num_classes}; use --config.model.num_classes={count}"
        )
    return opened


def open_any_split(name: str, data_dir: str, split: str, num_classes: int) -> Split:
    """Opens a split whatever its number of classes.

    Args:
      name: a TFDS name, or "folder".
      data_dir: TFDS' data_dir, or the folder.
      split: in TFDS' split language.
      num_classes: 1000 lets a folder of synsets have ImageNet's labels.

    Raises:
      DataError: no such data set or split, not prepared, or empty.
    """
    if name == "folder":
        records, class_names = _open_folder(data_dir, split, num_classes)
    else:
        records, class_names = prepared.open_split(name, data_dir, split)
    if not len(records):
        raise DataError(f"{name}/{split} is empty; give a split with examples in it")
    return Split(f"{name}/{split}", records, class_names)


def fingerprint(split: Split) -> str:
    """A hash of a split's length, of its files' names and of 16 records spread over it.

    It finds another data set, version, order or selection, and not every other pixel:
    reading all of ImageNet first would take longer than a restart.
    """
    places = np.unique(np.linspace(0, len(split) - 1, 16).astype(int))
    digest = hashlib.sha256(f"{len(split)}".encode())
    for record in (split.records[int(place)] for place in places):
        digest.update(f"{record['key']} {record['label']}".encode())
        digest.update(record["image"])
    if isinstance(split.records, folder.ImageFiles):
        digest.update(split.records.listing().encode())
    return digest.hexdigest()[:12]


def _open_folder(
    root: str, split: str, num_classes: int
) -> tuple[RandomAccess, tuple[str, ...]]:
    if not root:
        raise DataError(
            "config.data.name='folder' needs the folder that holds SPLIT/CLASS/*: "
            "--config.data.data_dir=DIR"
        )
    try:
        instruction = tfds.core.ReadInstruction.from_spec(split)
        names = [part.split("[")[0].strip() for part in split.split("+")]
        listed = {name: folder.list_images(root, name, num_classes) for name in names}
        sizes = {
            name: types.SimpleNamespace(num_examples=len(items))
            for name, (items, _) in listed.items()
        }
        parts = instruction.to_absolute(sizes)
    except (ValueError, AttributeError) as error:  # AttributeError: slices of shards
        raise DataError(f"split {split!r} of {root}: {error}") from error
    items = [
        i for part in parts for i in listed[part.splitname][0][part.from_ : part.to]
    ]
    return folder.ImageFiles(items), listed[names[0]][1]
