"""A split of a data set: labelled images in a fixed order, opened by name."""

import dataclasses
import hashlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vgg_flax import spelling
from vgg_flax.config import DataConfig
from vgg_flax.data import SUFFIXES, DataError, folder, prepared, table


@dataclasses.dataclass(frozen=True)
class Split:
    """Labelled images in a fixed order.

    Attributes:
      name: such as "digits/train[:90%]".
      records: each `{"image": bytes, "label": int, "key": str}`.
      class_names: in the order of the labels.
      remarks: what a person should know of it: classes without images, other files.
    """

    name: str
    records: Any  # RandomAccess; grain's own protocol wants more of it
    class_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)


def open_split(
    config: DataConfig, split: str, num_classes: int, class_names: Sequence[str] = ()
) -> Split:
    """Opens `split` ("train", "train[:90%]", "train[:5]+test") of the data set.

    Args:
      config: of the data.
      split: in TFDS' split language.
      num_classes: that the net has; 0: as many as there are.
      class_names: that the labels stand for; none: this is the split that says it.

    Raises:
      DataError: no such data set or split, not prepared, empty, or its number of
        classes is not `num_classes`.
    """
    opened = open_any_split(
        config.name,
        config.data_dir,
        split,
        num_classes,
        class_names,
        every_class=not class_names,
    )
    if num_classes and len(opened.class_names) != num_classes:
        count = len(opened.class_names)
        raise DataError(
            f"{opened.name} has {count} classes, and config.model.num_classes="
            f"{num_classes}; use --config.model.num_classes={count}"
        )
    return opened


AUTO = "auto"  # of a config's split: what a folder or a table has of its own


def is_files(data: str) -> bool:
    """Whether that is a folder or a table of images, and no name of TFDS."""
    return table.is_table(data) or epath.Path(data).is_dir()


def resolved(config: DataConfig) -> DataConfig:
    """`config` with splits in the place of `AUTO`.

    Validation is what there is under one of its names, else the last tenth of train;
    test is `test`, or none.

    Raises:
      DataError: it is a TFDS data set, or there are no splits to look at.
    """
    asked = [
        field
        for field in ("train_split", "validation_split", "test_split")
        if getattr(config, field) == AUTO
    ]
    if not asked:
        return config
    if config.name == "folder" and not config.data_dir:
        raise DataError(
            "config.data.name='folder', and config.data.data_dir is empty; give the "
            "folder that holds SPLIT/CLASS/*, or a table: --config.data.data_dir=DIR"
        )
    if config.name != "folder":
        raise DataError(
            f"config.data.{asked[0]}='auto' is what a folder or a table has, and "
            f"config.data.name={config.name!r}, data_dir={config.data_dir!r}; name the "
            f"split: --config.data.{asked[0]}=NAME"
        )
    is_table = table.is_table(config.data_dir)
    there = (
        table.read(config.data_dir).splits()
        if is_table
        else folder.split_names(config.data_dir)
    )
    found = folder.find_split(there, "validation")
    tenth = found is None and config.validation_split == AUTO
    if "train_split" in asked and config.validation_split.startswith("train["):
        raise DataError(
            f"config.data.validation_split={config.validation_split!r} is a part of "
            "train; say what is left of it: --config.data.train_split='train[:90%]'"
        )
    if config.validation_split == AUTO and found is None and "train_split" not in asked:
        raise DataError(
            f"config.data.validation_split='auto': {config.data_dir} has none, and "
            f"config.data.train_split={config.train_split!r} leaves nothing of train; "
            "leave that to 'auto' too, or name a split"
        )
    every = {
        "train_split": "train[:90%]" if tenth else "train",
        "validation_split": "train[90%:]" if tenth else found,
        "test_split": folder.find_split(there, "test") or "",
    }
    return dataclasses.replace(config, **{field: every[field] for field in asked})


def open_any_split(
    name: str,
    data_dir: str,
    split: str,
    num_classes: int,
    class_names: Sequence[str] = (),
    *,
    every_class: bool = False,
) -> Split:
    """Opens a split whatever its number of classes.

    Args:
      name: a TFDS name, or "folder".
      data_dir: TFDS' data_dir, or the folder.
      split: in TFDS' split language.
      num_classes: 1000 lets a folder of synsets have ImageNet's labels.
      class_names: that a folder's labels stand for, and of which it may lack some;
        none: those of its own folders.
      every_class: whether a class folder without images is an error.

    Raises:
      DataError: no such data set or split, not prepared, or empty.
    """
    remarks: tuple[str, ...] = ()
    if name == "folder":
        records, class_names, remarks = _open_folder(
            data_dir, split, num_classes, class_names, every_class
        )
    else:
        records, class_names = prepared.open_split(name, data_dir, split)
    if not len(records):
        raise DataError(f"{name}/{split} is empty; give a split with examples in it")
    return Split(f"{name}/{split}", records, tuple(class_names), remarks)


def fingerprint(split: Split) -> str:
    """A hash of a split's length, of its files' names and of 16 records spread over it.

    It finds another data set, version, order or selection, and not every other pixel:
    reading all of ImageNet first would take longer than a restart.
    """
    places = np.unique(np.linspace(0, len(split) - 1, 16).astype(int))
    digest = hashlib.sha256(f"{len(split)}".encode())
    is_folder = isinstance(split.records, folder.ImageFiles)
    for record in (split.records[int(place)] for place in places):
        key = "" if is_folder else record["key"]  # a path: folders may be moved
        digest.update(spelling.digestible(f"{key} {record['label']}"))
        digest.update(record["image"])
    if is_folder:
        digest.update(spelling.digestible(split.records.listing()))
    return digest.hexdigest()[:12]


def _open_folder(
    root: str,
    split: str,
    num_classes: int,
    class_names: Sequence[str],
    every_class: bool,
) -> tuple[folder.ImageFiles, Sequence[str], tuple[str, ...]]:
    """The images, the classes that the labels stand for, and remarks."""
    if not root:
        raise DataError(
            "config.data.name='folder' needs the folder that holds SPLIT/CLASS/*, or "
            "a table of paths and labels: --config.data.data_dir=DIR"
        )
    try:
        instruction = tfds.core.ReadInstruction.from_spec(split)
        names = [part.split("[")[0].strip() for part in split.split("+")]
        if table.is_table(root):
            rows = table.read(root)
            class_names = class_names or rows.class_names(names, num_classes)
            listed = {name: rows.list_images(name, class_names) for name in names}
        else:
            class_names = class_names or folder.class_names(root, names, num_classes)
            listed = {n: folder.list_images(root, n, class_names) for n in names}
        sizes = {
            name: types.SimpleNamespace(num_examples=len(listing.items))
            for name, listing in listed.items()
        }
        parts = instruction.to_absolute(sizes)
    except (ValueError, AttributeError) as error:  # AttributeError: slices of shards
        raise DataError(f"split {split!r} of {root}: {error}") from error
    images = folder.ImageFiles(
        [
            i
            for part in parts
            for i in listed[part.splitname].items[part.from_ : part.to]
        ]
    )
    empty = [f"{name}/{one}" for name in listed for one in listed[name].empty]
    if empty and every_class:
        raise DataError(
            f"in {root} there is no image ({', '.join(SUFFIXES)}) in {empty}: "
            "nothing to learn these classes from; add some, or remove the folders"
        )
    return images, class_names, _remarks(images, class_names, listed)


def open_folder(path: str, num_classes: int) -> Split:
    """Opens all of a folder that holds CLASS/*, or of a table: see `open_any_split`.

    Raises:
      DataError: no image, or a table of several splits.
    """
    if table.is_table(path):
        names = table.read(path).splits()
        if len(names) > 1:
            raise DataError(
                f"{path} has splits {folder.some(names)}; name one, or more as "
                f"{'+'.join(names[:2])}"
            )
        return open_any_split("folder", path, names[0], num_classes)
    class_names = folder.class_names(path, [""], num_classes)
    listing = folder.list_images(path, "", class_names)
    images = folder.ImageFiles(listing.items)
    if not len(images):
        raise DataError(f"{path} holds no image ({', '.join(SUFFIXES)})")
    return Split(
        path, images, class_names, _remarks(images, class_names, {"": listing})
    )


def _remarks(
    images: folder.ImageFiles,
    class_names: Sequence[str],
    listed: Mapping[str, folder.Listing],
) -> tuple[str, ...]:
    remarks = []
    if lacking := sorted(set(range(len(class_names))) - images.labels()):
        remarks.append(f"no image of {folder.some([class_names[i] for i in lacking])}")
    for name, listing in listed.items():
        if listing.left_out:
            where = f" in {name}" * bool(name)
            remarks.append(f"left out{where}: {folder.describe(listing.left_out)}")
    return tuple(remarks)
