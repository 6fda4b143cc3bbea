"""Table 1 of the paper as data: its columns, and the parts of a net."""

import dataclasses
import re

STAGE_WIDTHS = (64, 128, 256, 512, 512)
STAGES = range(1, 6)
PARTS = range(1, 7)  # the stages and the head, which begins with fc6


@dataclasses.dataclass(frozen=True)
class Variant:
    """A column of Table 1: the kernel sizes of each stage's convolutions."""

    stages: tuple[tuple[int, ...], ...]
    batch_norm: bool = False
    lrn: bool = False  # local response normalisation after conv1_1


_COLUMNS = {
    "vgg11": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "vgg13": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "vgg16_1x1": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "vgg16": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "vgg19": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
VARIANTS: dict[str, Variant] = {
    **{name: Variant(stages) for name, stages in _COLUMNS.items()},
    "vgg11_lrn": Variant(_COLUMNS["vgg11"], lrn=True),
    **{f"{name}_bn": Variant(s, batch_norm=True) for name, s in _COLUMNS.items()},
}
PAPER_LETTERS = {
    "A": "vgg11",
    "A-LRN": "vgg11_lrn",
    "B": "vgg13",
    "C": "vgg16_1x1",
    "D": "vgg16",
    "E": "vgg19",
}


def variant_name(name: str) -> str:
    """The name in `VARIANTS` for a name or a letter of the paper ("D" -> "vgg16").

    Raises:
      ValueError: no such variant.
    """
    name = PAPER_LETTERS.get(name, name)
    if name not in VARIANTS:
        known = ", ".join([*VARIANTS, *PAPER_LETTERS])
        raise ValueError(f"variant {name!r} is not a column of Table 1; known: {known}")
    return name


def part_of(layer: str) -> int:
    """The part of the net that a layer is in: conv3_2, bn3_2: 3; avgpool, fc8: 6."""
    match = re.match(r"[a-z]+([1-5])", layer)
    return int(match[1]) if match else PARTS[-1]
