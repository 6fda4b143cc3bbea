"""Classes by their names, where one name may be written in two ways.

An é is one character, or an e and an accent, and looks the same; file systems differ
in which they have. In different splits, or in a net's classes and a folder's, these
are one class. In one split they are a mistake that nobody sees, and are refused.
"""

from collections.abc import Iterable, Sequence

from vgg_flax import spelling
from vgg_flax.data import DataError


class LabelOf:
    """Of each class its label: its place in the order of the outputs."""

    def __init__(self, class_names: Sequence[str]):
        self._exact = {name: label for label, name in enumerate(class_names)}
        self._same: dict[str, int] = {}
        for label, name in enumerate(class_names):
            self._same.setdefault(spelling.same(name), label)

    def __contains__(self, name: str) -> bool:
        return spelling.same(name) in self._same

    def __getitem__(self, name: str) -> int:
        """By the name as it is, else by one that looks the same; KeyError: by none."""
        label = self._exact.get(name)
        return self._same[spelling.same(name)] if label is None else label


def merged(splits: Iterable[tuple[str, Iterable[str]]]) -> set[str]:
    """The names of all classes, each in one writing.

    Args:
      splits: of each a name for people, such as its folder, and its classes' names.

    Raises:
      DataError: two in one split look the same.
    """
    written: dict[str, str] = {}
    for where, names in splits:
        there: dict[str, str] = {}
        for name in sorted(set(names)):
            twin = there.setdefault(spelling.same(name), name)
            if twin != name:
                raise DataError(
                    f"{where} has two classes '{spelling.shown(name)}' that look the "
                    f"same: '{spelling.spelt(twin)}' and '{spelling.spelt(name)}', "
                    "equal in Unicode's form NFC; if they are one class, bring them "
                    "together under one name, else rename one"
                )
        for key, name in there.items():
            written.setdefault(key, name)
    return set(written.values())
