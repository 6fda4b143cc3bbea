"""ImageNet's 1,000 classes (ILSVRC-2012) in the order of their labels."""

import functools
import pathlib

_CLASSES = pathlib.Path(__file__).parent / "imagenet_classes.txt"


def synsets() -> tuple[str, ...]:
    """WordNet's identifiers: "n01440764", ...; they are sorted."""
    return tuple(synset for synset, _ in _classes())


def class_names() -> tuple[str, ...]:
    """English names, all different: "tench", ...; torchvision's choice of words."""
    return tuple(name for _, name in _classes())


def display_names(names: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """The names to show for a net's classes: ImageNet's where the classes are its.

    That is so for 1,000 classes that are named by ImageNet's synsets, by their own
    numbers, or not at all. Others keep their names; without any they are numbered.

    Args:
      names: the net's own, in the order of the logits; may be empty.
      num_classes: the number of logits.
    """
    numbers = tuple(str(label) for label in range(num_classes))
    if num_classes == len(_classes()) and names in ((), numbers, synsets()):
        return class_names()
    return names or numbers


@functools.cache
def _classes() -> tuple[tuple[str, str], ...]:
    lines = _CLASSES.read_text().splitlines()
    pairs = [line.split(" ", 1) for line in lines if not line.startswith("#")]
    return tuple((synset, name) for synset, name in pairs)
