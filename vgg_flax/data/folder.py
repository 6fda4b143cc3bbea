"""Images in plain folders: `ROOT/SPLIT/CLASS/**`, or ImageNet's flat `ROOT/val/*`."""

import collections
import dataclasses
import hashlib
import os
import random
import re
import stat
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from etils import epath

from vgg_flax import spelling, storage
from vgg_flax.data import SUFFIXES, DataError, classes, imagenet

# What people call the same split: one that is asked for is found by another name.
_SAME = (("train", "training"), ("validation", "valid", "val", "dev"), ("test",))
IMAGENET_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class FolderError(DataError):
    """A folder that is missing, empty, or laid out in another way."""


LeftOut = collections.Counter[str]  # files that were not taken, by their kind


class Item(NamedTuple):
    """An image file: where it is, its label, and its path within the split's folder."""

    path: epath.Path
    label: int
    name: str


class ImageFiles:
    """Image files as records; read when asked for."""

    def __init__(self, items: Sequence[Item]):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record; OSError: it is unreadable; FolderError: its folder has gone.

        A mount that is lost takes all images with it: that is none of their errors.
        """
        path, label, _ = self._items[index]
        try:
            image = path.read_bytes()
        except OSError as error:
            if not _is_folder(path.parent):
                raise FolderError(
                    f"{path.parent} has gone, with its images ({error}); bring it "
                    "back, and run the same command again: what was done is kept"
                ) from error
            raise
        return {"image": image, "label": label, "key": str(path)}

    def labels(self) -> set[int]:
        """Those that there are images of."""
        return {item.label for item in self._items}

    def listing(self) -> str:
        """The images in their order, as CLASS/NAME, a line each; none is looked at."""
        return "\n".join(item.name for item in self._items)

    def fingerprint(self) -> str:
        """A hash of the images' names, classes and sizes; none of them is read."""
        facts = [
            (*item.name.rsplit("/", 1), _length(item.path), item.label)
            for item in self._items
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a split's folder holds.

    Attributes:
      items: its labelled images.
      empty: the classes whose folders have none.
      left_out: how many files were not taken, by their kind.
    """

    items: list[Item] = dataclasses.field(default_factory=list)
    empty: list[str] = dataclasses.field(default_factory=list)
    left_out: LeftOut = dataclasses.field(default_factory=collections.Counter)


def find_images(folder: epath.Path, left_out: LeftOut) -> Iterator[epath.Path]:
    """The image files in `folder` at any depth, by their suffix in any case, sorted.

    Hidden ones are passed over. A link to a folder is followed, unless it leads back
    to one that it is in.

    Args:
      folder: to look in.
      left_out: counts the other files.
    """
    yield from _walk(folder, left_out, (os.path.realpath(folder),))


def _walk(
    folder: epath.Path, left_out: LeftOut, above: tuple[str, ...]
) -> Iterator[epath.Path]:
    for path, is_folder in _visible(folder):
        if is_folder:
            there = os.path.realpath(path)
            if not any(f"{one}/".startswith(f"{there}/") for one in above):
                yield from _walk(path, left_out, (*above, there))
        elif path.suffix.lower() not in SUFFIXES:
            left_out[_kind(path)] += 1
        elif storage.is_local(path) and _is_special(path):
            left_out[f"{_kind(path)} that is no file"] += 1
        else:
            yield path


def _is_special(path: epath.Path) -> bool:
    """A pipe, a socket or a device, which one might wait for without end.

    Not a link to one, which somebody has made on purpose.
    """
    mode = os.lstat(path).st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode))


def _kind(path: epath.Path) -> str:
    return path.suffix.lower() or "without a suffix"


def find_split(there: Sequence[str], asked: str) -> str | None:
    """`asked` among the splits that are there, or the one that is called otherwise."""
    if asked in there:
        return asked
    names = next((names for names in _SAME if asked in names), ())
    found = [name for name in there if name in names]
    return found[0] if len(found) == 1 else None


def split_names(root: str) -> list[str]:
    """The folders of splits; raises FolderError where `root` is none."""
    if not epath.Path(root).is_dir():
        raise FolderError(f"{root} is not a folder; expected SPLIT/CLASS/*.jpg in it")
    return _folders(epath.Path(root))


def describe(left_out: LeftOut) -> str:
    """ "12 .txt, 1 without a suffix"; empty if there were none."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))


def class_names(root: str, splits: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """The classes of some splits' folders together, in the order of their labels.

    They are the sorted folder names; where `num_classes` is 1000 and all the folders
    are synsets, or there are none but ImageNet's flat images, they are ImageNet's.

    Raises:
      FolderError: no such folder.
      DataError: two folders in one split whose names look the same.
    """
    folders = [_split_folder(root, split) for split in splits]
    names = classes.merged((str(folder), _folders(folder)) for folder in folders)
    synsets = imagenet.synsets()
    is_imagenet = num_classes == len(synsets) or not names
    return synsets if is_imagenet and names <= set(synsets) else tuple(sorted(names))


def list_images(root: str, split: str, class_names: Sequence[str]) -> Listing:
    """The labelled files of one split's folder, and what there is besides.

    The order is a fixed shuffle of the sorted paths, so that a slice such as
    `train[90%:]` holds every class.

    Args:
      root: of the splits.
      split: its folder.
      class_names: in the order of the labels; the folder may lack some of them.

    Raises:
      FolderError: no such folder, images of another class, or neither folders of
        classes nor ImageNet's flat images.
      DataError: two folders whose names look the same.
    """
    folder = _split_folder(root, split)
    if names := _folders(folder):
        classes.merged([(str(folder), names)])
        listing = _list_classes(folder, names, class_names)
    else:
        listing = _list_flat(folder, class_names)
    random.Random(0).shuffle(listing.items)
    return listing


def _split_folder(root: str, split: str) -> epath.Path:
    if not split:
        return epath.Path(root)
    there = split_names(root) if epath.Path(root).is_dir() else []
    name = find_split(there, split)
    if name is None:
        raise FolderError(
            f"{root}/{split} is not a folder; expected {root}/SPLIT/CLASS/*.jpg, and "
            f"the splits there are: {', '.join(there) or 'none'}"
        )
    return epath.Path(root) / name


def _list_classes(
    folder: epath.Path, names: Sequence[str], class_names: Sequence[str]
) -> Listing:
    listing, strangers = Listing(), []
    for path, is_folder in _visible(folder):
        if not is_folder:
            listing.left_out[f"{_kind(path)} beside the class folders"] += 1
    label_of = classes.LabelOf(class_names)
    for name in names:
        paths = list(find_images(folder / name, listing.left_out))
        if not paths:
            listing.empty.append(name)
        elif name not in label_of:
            strangers.append(name)
        else:
            listing.items.extend(
                Item(path, label_of[name], str(path).removeprefix(f"{folder}/"))
                for path in paths
            )
    if strangers:
        raise FolderError(
            f"{folder} has images of {some(strangers)}, and labels are of "
            f"{some(class_names)}; rename such folders, or move them away"
        )
    return listing


def _list_flat(folder: epath.Path, class_names: Sequence[str]) -> Listing:
    listing = Listing()
    files = list(find_images(folder, listing.left_out))
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
    synsets = [truth[number - 1] for number in numbers]
    label_of = {name: label for label, name in enumerate(class_names)}
    if strangers := sorted(set(synsets) - set(label_of)):
        raise FolderError(
            f"{folder} holds ImageNet's validation images, of {some(strangers)}, and "
            f"labels are of {some(class_names)}"
        )
    listing.items.extend(
        Item(path, label_of[synset], f"{folder.name}/{path.name}")
        for path, synset in zip(files, synsets, strict=True)
    )
    return listing


def some(names: Sequence[str]) -> str:
    """The first five of some names, and how many more there are."""
    shown = ", ".join(f"'{spelling.shown(name)}'" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _validation_synsets() -> list[str]:
    """Of ImageNet's validation images, in the order of their numbers: TFDS' list."""
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return epath.Path(path).read_text().split()


def _folders(folder: epath.Path) -> list[str]:
    return [path.name for path, is_folder in _visible(folder) if is_folder]


def _visible(folder: epath.Path) -> list[tuple[epath.Path, bool]]:
    """What is in a folder, sorted, and whether each is one; of a million, quickly.

    Without hidden ones, such as .cache, and what macOS leaves: ._NAME.jpg, __MACOSX.
    """
    if storage.is_local(folder):
        with os.scandir(folder) as entries:  # which knows without asking again
            there = [(entry.name, entry.is_dir()) for entry in entries]
    else:
        there = [(path.name, path.is_dir()) for path in folder.iterdir()]
    return [
        (folder / name, is_folder)
        for name, is_folder in sorted(there)
        if not name.startswith(".") and name != "__MACOSX"
    ]


def _is_folder(path: epath.Path) -> bool:
    """False where it can't be asked, as of a mount that is not connected any more."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _length(path: epath.Path) -> int:
    try:
        return path.stat().length
    except OSError:  # a link to nowhere: who reads it will say so
        return -1
