"""Which classes count as right for an image: ImageNet's labels, ReaL's, V2, A, R."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from vgg_flax import storage
from vgg_flax.data import DataError, folder, imagenet, splits
from vgg_flax.data.classes import LabelOf

# own: the data set's labels, by the names of its classes; -Sketch needs no more.
# real: Beyer et al. 2020 (several labels an image, or none), for ImageNet's validation
# images. v2: Recht et al. 2019, folders 0 to 999. a, r: Hendrycks et al. 2021, folders
# of 200 synsets, and only these classes' scores are looked at.
LABEL_SETS = ("own", "real", "v2", "a", "r", "sketch")

_FEWER_CLASSES = 200  # of -A and -R

Labels = Callable[[dict[str, Any]], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A split, and what counts as right.

    Attributes:
      data: the folder or TFDS name, as given.
      split_name: as given.
      split: the images.
      labels: a record -> its right classes, among `classes`; none: not to be counted.
      classes: the net's classes that take part; None: all.
      label_set: of `LABEL_SETS`.
      fingerprint: a hash of all that `labels` and the order of images depend on.
    """

    data: str
    split_name: str
    split: splits.Split
    labels: Labels
    classes: tuple[int, ...] | None
    label_set: str
    fingerprint: str


def open_images(
    data: str,
    split: str,
    class_names: Sequence[str],
    num_classes: int,
    *,
    data_dir: str = "",
    label_set: str = "own",
    label_file: str = "",
) -> LabelledImages:
    """Opens a split to be tested on, for a net of the given classes.

    Args:
      data: a folder that holds SPLIT/CLASS/* (or, with split "", CLASS/*), a table
        of paths and labels, or a TFDS name. A folder of that name comes first.
      split: such as "test" or "validation[:1000]".
      class_names: the net's; may be empty where they are not known.
      num_classes: the net's.
      data_dir: TFDS' data_dir.
      label_set: of `LABEL_SETS`.
      label_file: with "real": real.json.

    Raises:
      DataError: no such data, or its classes are not the net's.
    """
    storage.check_path("--data", data)
    is_folder = splits.is_files(data)
    if is_folder and data_dir:
        raise DataError(f"--data-dir {data_dir} is TFDS', and --data {data} is not")
    if label_file and label_set != "real":
        raise DataError(f"--label-file {label_file} needs --label-set real")
    if not is_folder and ("/" in data or not split):
        raise DataError(
            f"--data {data}: "
            + ("is not a folder" if "/" in data else "a TFDS name needs --split")
        )
    # Of -A and -R the folders' own names say which classes take part.
    asked = 0 if label_set in ("v2", "a", "r") else num_classes
    if is_folder and not split:
        opened = splits.open_folder(data, asked)
        _check_no_splits(opened, class_names)
    elif is_folder:
        opened = splits.open_any_split("folder", data, split, asked)
    else:
        opened = splits.open_any_split(data, data_dir, split, asked)
    name = f"{data}/{split}".rstrip("/")
    opened = dataclasses.replace(opened, name=name)
    classes, label_text = None, ""
    if label_set not in ("own", "sketch"):
        _check_imagenet(class_names, num_classes, label_set)
    if label_set == "real":
        label_text = _read_text(label_file)
        labels = _real_labels(label_text, label_file, num_classes)
    elif label_set in ("a", "r"):
        classes = _synset_classes(opened, num_classes)
        labels = _mapped(name, range(len(classes)))
    elif label_set == "v2":
        labels = _mapped(name, _numbered_classes(opened, num_classes))
    else:
        labels = _mapped(name, _named_classes(opened, class_names, num_classes))
        opened = _telling_what_lacks(opened, class_names)
    content = opened.records.fingerprint() if is_folder else splits.fingerprint(opened)
    parts = [label_set, split, len(opened), opened.class_names, content, label_text]
    fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return LabelledImages(data, split, opened, labels, classes, label_set, fingerprint)


def _mapped(name: str, classes: Sequence[int]) -> Labels:
    """The record's own label, as the net's class."""

    def labels(record: dict[str, Any]) -> tuple[int, ...]:
        if not 0 <= record["label"] < len(classes):
            raise DataError(
                f"{record['key']} has label {record['label']}; expected 0 to "
                f"{len(classes) - 1}: {name} has no labels to test with"
            )
        return (classes[record["label"]],)

    return labels


def _check_no_splits(opened: splits.Split, class_names: Sequence[str]) -> None:
    """Refuses SPLIT/CLASS/* where CLASS/* was expected, with images at any depth."""
    theirs, listing = opened.class_names, opened.records.listing().splitlines()
    if not _are_known(theirs, class_names) and all(n.count("/") > 1 for n in listing):
        raise DataError(
            f"{opened.name} holds folders with folders in them, {folder.some(theirs)}, "
            "and no image besides, and the net knows no such classes; are they splits? "
            f"Then name one: --split {theirs[0]}"
        )


def _check_imagenet(
    class_names: Sequence[str], num_classes: int, label_set: str
) -> None:
    """These sets count by the place of a class in ImageNet's order."""
    synsets = imagenet.synsets()
    numbers = tuple(str(label) for label in range(num_classes))
    if tuple(class_names) not in ((), numbers, synsets):
        raise DataError(
            f"--label-set {label_set} needs ImageNet's classes in their order; this "
            f"net has {num_classes}: {folder.some(class_names)}"
        )


def _named_classes(
    split: splits.Split, class_names: Sequence[str], num_classes: int
) -> Sequence[int]:
    """The net's class of each of the split's classes, by name."""
    theirs = split.class_names
    if tuple(class_names) == theirs or (not class_names and len(theirs) == num_classes):
        return range(len(theirs))
    label_of = LabelOf(class_names)
    if _are_known(theirs, class_names) and len(set(class_names)) == len(class_names):
        return [label_of[name] for name in theirs]
    # Weight files may have words instead of synsets; their order is ImageNet's.
    if num_classes == len(theirs) == 1000 and theirs == imagenet.synsets():
        return range(len(theirs))
    if not class_names:
        raise DataError(
            f"{split.name} has {len(theirs)} classes, {folder.some(theirs)}, and the "
            f"net, which does not name its own, has {num_classes}"
        )
    strangers = [name for name in theirs if name not in label_of]
    raise DataError(
        f"{split.name} has {len(theirs)} classes that do not match the net's "
        f"{num_classes}: the net does not know {folder.some(strangers)}, and has "
        f"{folder.some(list(class_names))}; name the folders as the net's classes"
    )


def _telling_what_lacks(
    split: splits.Split, class_names: Sequence[str]
) -> splits.Split:
    """`split` with a remark on its classes that the net does not name, or it lacks."""
    if not class_names:
        remark = (
            "the net does not name its classes, which are taken to be, from 0 on, "
            f"{folder.some(split.class_names)} (--classes FILE has another order)"
        )
        return dataclasses.replace(split, remarks=(*split.remarks, remark))
    theirs = LabelOf(split.class_names)
    lacking = [name for name in class_names if name not in theirs]
    if not lacking or not _are_known(split.class_names, class_names):
        return split
    remark = f"no image of {folder.some(lacking)}, which the net knows"
    return dataclasses.replace(split, remarks=(*split.remarks, remark))


def _are_known(theirs: Sequence[str], class_names: Sequence[str]) -> bool:
    label_of = LabelOf(class_names)
    return all(name in label_of for name in theirs)


def _numbered_classes(split: splits.Split, num_classes: int) -> Sequence[int]:
    """ImageNet-V2's folders are called 0 to 999, and sorted as strings."""
    allowed = {str(i): i for i in range(num_classes)}
    strangers = [name for name in split.class_names if name not in allowed]
    if strangers:
        raise DataError(
            f"{split.name} has folders {folder.some(strangers)}; ImageNet-V2's are "
            f"named 0 to {num_classes - 1}, the net's classes"
        )
    return [allowed[name] for name in split.class_names]


def _synset_classes(split: splits.Split, num_classes: int) -> tuple[int, ...]:
    synsets = imagenet.synsets()
    strangers = [name for name in split.class_names if name not in synsets]
    if len(split.class_names) != _FEWER_CLASSES:
        raise DataError(
            f"{split.name} has {len(split.class_names)} classes; ImageNet-A and -R "
            f"have {_FEWER_CLASSES}, and scores over others compare with nothing; "
            "give the whole set"
        )
    if strangers or num_classes != len(synsets):
        raise DataError(
            f"{split.name} has folders "
            f"{folder.some(strangers or split.class_names)} and the net has "
            f"{num_classes} classes; ImageNet-A and -R need folders of ImageNet's "
            f"synsets and a net of {len(synsets)} classes"
        )
    return tuple(synsets.index(name) for name in split.class_names)


def _real_labels(text: str, path: str, num_classes: int) -> Labels:
    """ReaL's lists of labels, in the order of the validation images' numbers."""
    try:
        lists = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(lists, list) or not all(
        isinstance(labels, list)
        and all(isinstance(i, int) and 0 <= i < num_classes for i in labels)
        for labels in lists
    ):
        raise DataError(
            f"{path}: expected a JSON list of lists of labels, 0 to {num_classes - 1}: "
            "ReaL's real.json"
        )

    def labels(record: dict[str, Any]) -> tuple[int, ...]:
        match = folder.IMAGENET_VALIDATION.search(record["key"])
        if not match or not 1 <= int(match[1]) <= len(lists):
            raise DataError(
                f"{record['key']}: ReaL's labels are for ILSVRC2012_val_00000001.JPEG "
                f"to number {len(lists)}"
            )
        return tuple(dict.fromkeys(lists[int(match[1]) - 1]))

    return labels


def _read_text(path: str) -> str:
    if not path or not epath.Path(path).is_file():
        raise DataError(
            f"--label-file {path or '(none)'}: no such file; --label-set real needs "
            "ReaL's real.json, from github.com/google-research/reassessed-imagenet"
        )
    return epath.Path(path).read_text()
