"""Two contenders in turn (A B A B ...), and the statistics of their ratios."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.workers import Contender, ContenderError, Session, Worker

Measure = Callable[[int], float]  # repetitions -> seconds, or another value of them


@dataclasses.dataclass(frozen=True)
class Row:
    """What is measured, of whom and beside whom.

    Attributes:
      benchmark: "train", ...
      name: "vgg16, batch 8".
      peer: "torchvision", or "" where there is none.
      ours: who works for us.
      theirs: who for the peer: the fastest of these in a short trial. None of them
        without a peer.
      amount: of `unit` in a repetition; 0: the value of a repetition is itself the
        figure, and the smaller the better.
      unit: "images/s"; "s", "MiB" and the like where the smaller is better.
      sized: whether a measurement is as many repetitions as fill the wanted time,
        after one that warms up; else it is one.
      longer: factor of that time.
      trial: a row whose `theirs`, with the same labels, are tried instead.
      pairs: so many at most; None: as many as are asked for.
      tolerance: of outputs that are compared first, as a share of the largest value;
        None: there are none.
    """

    benchmark: str
    name: str
    peer: str
    ours: Contender
    theirs: tuple[Contender, ...] = ()
    amount: float = 0
    unit: str = "images/s"
    sized: bool = True
    longer: float = 1.0
    trial: "Row | None" = None
    pairs: int | None = None
    tolerance: float | None = None

    @property
    def smaller_is_better(self) -> bool:
        """Whether figures are costs, not rates."""
        return not self.amount

    def count(self, asked: int) -> int:
        """Pairs that are measured where so many are asked for."""
        return min(asked, self.pairs or asked)

    def figure(self, value: float, repetitions: int) -> float:
        """The value of so many repetitions, in `unit`."""
        if self.smaller_is_better:
            return value / repetitions
        return self.amount * repetitions / value


def sized(measure: Measure, seconds: float) -> tuple[int, float]:
    """Warms up, and says how many repetitions take about `seconds`; at least 1.

    And the value of one of the last that were tried: the first are over at once where
    they were made ahead, as batches are, so that counts grow until they take an eighth.
    """
    measure(1)
    count, value = 1, measure(1)
    while value < seconds / 8:
        count *= 2
        value = measure(count)
    one = value / count
    return max(1, round(seconds / one)), one


def alternate(
    ours: Measure, theirs: Measure, repetitions: tuple[int, int], count: int
) -> list[tuple[float, float]]:
    """`count` pairs of values, A B A B ..., never at the same time."""
    return [(ours(repetitions[0]), theirs(repetitions[1])) for _ in range(count)]


def ratios(figures: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of pairs of figures, ours over theirs: the median, the smallest, the largest."""
    each = [ours / theirs for ours, theirs in figures]
    return {"ratio": statistics.median(each), "min": min(each), "max": max(each)}


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Of each output in both files, the largest difference over the largest value.

    Raises:
      ContenderError: they hold other outputs, of other shapes, or no numbers.
    """
    found: dict[str, float] = {}
    with np.load(ours["outputs"]) as mine, np.load(theirs["outputs"]) as others:
        if set(mine) != set(others) or not set(mine):
            raise ContenderError(f"outputs {sorted(mine)} against {sorted(others)}")
        for name in mine:
            a, b = mine[name], others[name]
            if a.shape != b.shape or not (
                np.isfinite(a).all() and np.isfinite(b).all()
            ):
                raise ContenderError(f"{name}: {a.shape} and {b.shape}, or not finite")
            found[name] = float(np.abs(a - b).max() / np.abs(b).max())
    return found


def measure(row: Row, session: Session, count: int, seconds: float) -> dict[str, Any]:
    """A row's result, as `results` keeps it.

    Args:
      row: what.
      session: of this call.
      count: pairs.
      seconds: that a measurement is to take, where the row is `sized`.

    Raises:
      ContenderError: one ended, or outputs differ by more than the row's tolerance.
    """
    seconds *= row.longer
    count = row.count(count)
    if not row.theirs:
        with session.worker(row.ours) as ours:
            n = sized(ours, seconds)[0] if row.sized else 1
            alone = [row.figure(ours(n), n) for _ in range(count)]
        found = {"ours": statistics.median(alone), "ours_each": alone}
        return found | {"repetitions": [n]} | _notes(ours, None)
    best, trial = fastest(row, session, seconds)
    with session.worker(best) as theirs, session.worker(row.ours) as ours:
        found = {"trial": trial, "mode": best.label} if trial else {}
        if row.tolerance is not None:
            found["differences"] = difference(ours.facts, theirs.facts)
            if max(found["differences"].values()) > row.tolerance:
                raise ContenderError(
                    f"{row.name}, {best.label}: outputs differ by a share of "
                    f"{found['differences']}; at most {row.tolerance}"
                )
        n, m = (sized(w, seconds)[0] if row.sized else 1 for w in (ours, theirs))
        values = alternate(ours, theirs, (n, m), count)
    figures = [(row.figure(a, n), row.figure(b, m)) for a, b in values]
    mine, others = zip(*figures, strict=True)
    return {
        **found,
        **ratios(figures),
        "ours": statistics.median(mine),
        "theirs": statistics.median(others),
        "ours_each": list(mine),
        "theirs_each": list(others),
        "repetitions": [n, m],
        **_notes(ours, theirs),
    }


def fastest(
    row: Row, session: Session, seconds: float
) -> tuple[Contender, dict[str, float]]:
    """The peer's best contender, with the figures of all; none of one alone."""
    if len(row.theirs) == 1:
        return row.theirs[0], {}
    trial: dict[str, float] = {}
    tried = row.trial or row
    better: Any = min if tried.smaller_is_better else max
    for contender in tried.theirs:
        with session.worker(contender) as worker:
            n, one = sized(worker, seconds)
            values = [tried.figure(one, 1), tried.figure(worker(n), n)]
        trial[contender.label] = better(values)
    best = better(trial, key=lambda k: trial[k])
    return next(c for c in row.theirs if c.label == best), trial


def _notes(ours: Worker, theirs: Worker | None) -> dict[str, Any]:
    """What the contenders said besides, and the memory they took."""
    workers = {"ours": ours} | ({"theirs": theirs} if theirs else {})
    notes = {f"{k}_notes": w.notes for k, w in workers.items() if w.notes}
    return notes | {f"{k}_peak_mib": round(w.peak_mib) for k, w in workers.items()}
