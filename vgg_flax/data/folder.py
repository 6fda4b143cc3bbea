"""Images in plain folders: `ROOT/SPLIT/CLASS/*`, or ImageNet's flat `ROOT/val/*`."""

import hashlib
import random
import re
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from vgg_flax.data import SUFFIXES, DataError, imagenet

IMAGENET_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class FolderError(DataError):
    """A folder that is missing, empty, or laid out in another way."""


Item = tuple[epath.Path, int]  # an image's path and its label


class ImageFiles:
    """Image files as records; read when asked for."""

    def __init__(self, items: Sequence[Item]):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self._items[index]
        return {"image": path.read_bytes(), "label": label, "key": str(path)}

    def listing(self) -> str:
        """The images in their order, as CLASS/NAME, a line each; none is looked at."""
        return "\n".join(f"{p.parent.name}/{p.name}" for p, _ in self._items)

    def fingerprint(self) -> str:
        """A hash of the images' names, classes and sizes; none of them is read."""
        facts = [
            (path.parent.name, path.name, _length(path), label)
            for path, label in self._items
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def _length(path: epath.Path) -> int:
    try:
        return path.stat().length
    except OSError:  # a link to nowhere: who reads it will say so
        return -1


def list_images(
    root: str, split: str, num_classes: int
) -> tuple[list[Item], tuple[str, ...]]:
    """The labelled files of one split's folder, and the names of the classes.

    The order is a fixed shuffle of the sorted paths, so that a slice such as
    `train[90%:]` holds every class. Classes are the sorted folder names; where
    `num_classes` is 1000 and all the folders are synsets, they are ImageNet's.

    Raises:
      FolderError: no such folder, an empty class, or no images at all.
    """
    folder = epath.Path(root) / split
    if not folder.is_dir():
        there = _folders(epath.Path(root)) if epath.Path(root).is_dir() else []
        raise FolderError(
            f"{folder} is not a folder; expected {root}/SPLIT/CLASS/*.jpg, and the "
            f"splits there are: {', '.join(there) or 'none'}"
        )
    if _folders(folder):
        items, class_names = _list_classes(epath.Path(root), split, num_classes)
    else:
        items, class_names = _list_flat(folder)
    random.Random(0).shuffle(items)
    return items, class_names


def _list_classes(
    root: epath.Path, split: str, num_classes: int
) -> tuple[list[Item], tuple[str, ...]]:
    names = _folders(root / split)
    for other in _folders(root) if split else []:
        if _folders(root / other) not in ([], names):
            differing = sorted(set(_folders(root / other)) ^ set(names))
            raise FolderError(
                f"{root / split} and {root / other} differ in classes {differing}; "
                "each split needs a folder for every class"
            )
    synsets = imagenet.synsets()
    is_imagenet = num_classes == len(synsets) and set(names) <= set(synsets)
    class_names = synsets if is_imagenet else tuple(names)
    label_of = {name: label for label, name in enumerate(class_names)}
    items: list[Item] = []
    for name in names:
        files = _images(root / split / name)
        if not files and not split and _folders(root / name):
            raise FolderError(
                f"{root / name} holds folders, and no image; is it a split? Then name "
                f"it: --split {name}"
            )
        if not files:
            raise FolderError(
                f"{root / split / name} holds no image ({', '.join(SUFFIXES)}); "
                "add some, or remove the folder"
            )
        items += [(path, label_of[name]) for path in files]
    return items, class_names


def _list_flat(folder: epath.Path) -> tuple[list[Item], tuple[str, ...]]:
    files = _images(folder)
    matches = [IMAGENET_VALIDATION.fullmatch(path.name) for path in files]
    numbers = [int(match[1]) for match in matches if match]
    if not files or len(numbers) < len(files):
        raise FolderError(
            f"{folder} holds no class folders; expected {folder}/CLASS/*.jpg, or "
            "ImageNet's flat ILSVRC2012_val_00000001.JPEG ..."
        )
    truth = _validation_synsets()
    wrong = next((n for n in numbers if not 1 <= n <= len(truth)), None)
    if wrong is not None:
        raise FolderError(
            f"{folder} has image number {wrong}; ImageNet's validation images "
            f"are numbered 1 to {len(truth)}"
        )
    synsets = imagenet.synsets()
    label_of = {name: label for label, name in enumerate(synsets)}
    labels = (label_of[truth[number - 1]] for number in numbers)
    return list(zip(files, labels, strict=True)), synsets


def _validation_synsets() -> list[str]:
    """Of ImageNet's validation images, in the order of their numbers: TFDS' list."""
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return epath.Path(path).read_text().split()


def _folders(folder: epath.Path) -> list[str]:
    return sorted(p.name for p in _visible(folder) if p.is_dir())


def _images(folder: epath.Path) -> list[epath.Path]:
    return sorted(
        path
        for path in _visible(folder)
        if path.suffix.lower() in SUFFIXES and not path.is_dir()
    )


def _visible(folder: epath.Path) -> list[epath.Path]:
    """Without .cache folders and the ._NAME.jpg files that macOS leaves."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
