"""Tables 3 to 6 of the paper as data: what it tested, and the errors it reports.

Errors are percentages on ILSVRC-2012's validation split, from arXiv 1409.1556v6.
"""

import dataclasses

from vgg_flax.model import PAPER_LETTERS

Scale = tuple[int, int]  # S: (256, 256), or (256, 512) where it was jittered

S256, S384, JITTER = (256, 256), (384, 384), (256, 512)
Q = {  # Table 4's test scales for each train scale; Tables 5 and 6 use them too
    S256: (224, 256, 288),
    S384: (352, 384, 416),
    JITTER: (256, 384, 512),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A net of the paper at its test scales.

    Attributes:
      letter: its column of Table 1.
      train_scale: S, (low, high).
      scales: Q.
    """

    letter: str
    train_scale: Scale
    scales: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: nets (more than one: fused), a protocol, and the errors in %.

    Attributes:
      table: 3 to 6.
      entries: the nets; their posteriors are averaged.
      protocol: a key of `protocols.PROTOCOLS`, always with flips.
      top1: error on the validation split.
      top5: likewise.
      top5_test: error on the test split, where the paper gives it.
    """

    table: int
    entries: tuple[Entry, ...]
    protocol: str
    top1: float
    top5: float
    top5_test: float | None = None

    @property
    def name(self) -> str:
        """Such as "Table 5: D [256;512], Q 256 384 512, dense"."""
        nets = " + ".join(
            f"{e.letter} {_scale_name(e.train_scale)}" for e in self.entries
        )
        scales = {entry.scales for entry in self.entries}
        at = f"Q {' '.join(map(str, scales.pop()))}, " if len(scales) == 1 else ""
        return f"Table {self.table}: {nets}, {at}{self.protocol}"


def _scale_name(scale: Scale) -> str:
    return str(scale[0]) if scale[0] == scale[1] else f"[{scale[0]};{scale[1]}]"


def _multi(letter: str, train_scale: Scale) -> Entry:
    return Entry(letter, train_scale, Q[train_scale])


def _single(letter: str, train_scale: Scale) -> Entry:
    return Entry(letter, train_scale, Q[train_scale][1:2])  # S; of a jittered one 384


# letter, then (top-1, top-5) for S = 256, 384 and [256;512].
_TABLE_3 = (
    ("A", (29.6, 10.4)),
    ("A-LRN", (29.7, 10.5)),
    ("B", (28.7, 9.9)),
    ("C", (28.1, 9.4), (28.1, 9.3), (27.3, 8.8)),
    ("D", (27.0, 8.8), (26.8, 8.7), (25.6, 8.1)),
    ("E", (27.3, 9.0), (26.9, 8.7), (25.5, 8.0)),
)
_TABLE_4 = (
    ("B", (28.2, 9.6)),
    ("C", (27.7, 9.2), (27.8, 9.2), (26.3, 8.2)),
    ("D", (26.6, 8.6), (26.5, 8.6), (24.8, 7.5)),
    ("E", (26.9, 8.7), (26.7, 8.6), (24.8, 7.5)),
)
_TABLE_5 = (
    ("D", "dense", 24.8, 7.5),
    ("D", "multicrop", 24.6, 7.5),
    ("D", "both", 24.4, 7.2),
    ("E", "dense", 24.8, 7.5),
    ("E", "multicrop", 24.6, 7.4),
    ("E", "both", 24.4, 7.1),
)
_SUBMISSION = (  # the seven nets of the challenge entry, as Table 6 lists them
    ("D", S256),
    ("D", S384),
    ("D", JITTER),
    ("C", S256),
    ("C", S384),
    ("E", S256),
    ("E", S384),
)
_D_AND_E = (("D", JITTER), ("E", JITTER))
_TABLE_6 = (
    (_SUBMISSION, "dense", 24.7, 7.5, 7.3),
    (_D_AND_E, "dense", 24.0, 7.1, 7.0),
    (_D_AND_E, "multicrop", 23.9, 7.2, None),
    (_D_AND_E, "both", 23.7, 6.8, 6.8),
)

ROWS = (
    *(
        Row(3, (_single(letter, scale),), "dense", *errors)
        for letter, *cells in _TABLE_3
        for scale, errors in zip((S256, S384, JITTER), cells, strict=False)
    ),
    *(
        Row(4, (_multi(letter, scale),), "dense", *errors)
        for letter, *cells in _TABLE_4
        for scale, errors in zip((S256, S384, JITTER), cells, strict=False)
    ),
    *(
        Row(5, (_multi(letter, JITTER),), protocol, top1, top5)
        for letter, protocol, top1, top5 in _TABLE_5
    ),
    *(
        Row(6, tuple(_multi(*net) for net in nets), protocol, top1, top5, test)
        for nets, protocol, top1, top5, test in _TABLE_6
    ),
)


def rows_for(nets: list[tuple[str, Scale | None]]) -> list[tuple[Row, tuple[int, ...]]]:
    """The rows that can be tested with the given nets.

    Args:
      nets: each (a key of `vgg_flax.VARIANTS`, train scale).

    Returns:
      `(row, which net is which entry)`, in the order of the paper.
    """
    letters = {variant: letter for letter, variant in PAPER_LETTERS.items()}
    index = {
        (letters.get(variant), scale): i for i, (variant, scale) in enumerate(nets)
    }
    allowed = []
    for row in ROWS:
        wanted = [(entry.letter, entry.train_scale) for entry in row.entries]
        if all(want in index for want in wanted):
            allowed.append((row, tuple(index[want] for want in wanted)))
    return allowed
