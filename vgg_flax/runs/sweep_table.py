"""What the runs of a sweep came to: a row a setting, over its seeds; text and .csv."""

import csv
import dataclasses
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vgg_flax import metrics as metrics_lib
from vgg_flax import storage
from vgg_flax.config.sweep import Point, short_name
from vgg_flax.metrics import Metric, Metrics
from vgg_flax.runs import log

_WIDTH = 44  # letters of a setting in a line
SEED = "seed"  # the field over which there are means
_DIVERGED = "NonFiniteError"  # as `events.jsonl` has it: see `runs.meter`


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How far a run of a sweep is.

    Attributes:
      point: which run.
      records: what its last line tells the test of, and that step's validation, by
        split; of the average, if there is one. None of a run that is not complete.
      missing: what it is instead of complete, in words; "": it is.
    """

    point: Point
    records: Mapping[str, Mapping[str, Any]]
    missing: str


@dataclasses.dataclass(frozen=True)
class Spread:
    """Values of a metric over seeds.

    Attributes:
      values: in the order of the runs; at least one.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Their standard deviation, of a sample (n - 1); None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, metric: Metric) -> str:
        """Such as "98.33% ± 0.28% (98.06% to 98.61%)"."""
        shown = f"{self.mean:{metric.format}}"
        if self.std is None:
            return shown
        low, high = (f"{f(self.values):{metric.format}}" for f in (min, max))
        return f"{shown} ± {self.std:{metric.format}} ({low} to {high})"


@dataclasses.dataclass(frozen=True)
class Row:
    """A setting: the runs that differ in nothing but the seed.

    Attributes:
      values: of the swept fields, without the seed.
      outcomes: of each of its runs.
    """

    values: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]

    def spread(self, split: str, metric: Metric) -> Spread | None:
        """The metric over the runs that are complete; None: none is."""
        records = [outcome.records.get(split) for outcome in self.outcomes]
        values = tuple(record[metric.name] for record in records if record)
        return Spread(values) if values else None

    @property
    def complete(self) -> int:
        """How many of its runs are."""
        return sum(not outcome.missing for outcome in self.outcomes)

    @property
    def missing(self) -> str:
        """What its other runs are, in words."""
        texts = []
        for outcome in self.outcomes:
            if outcome.missing and SEED in outcome.point.values:
                texts.append(f"seed {outcome.point.values[SEED]}: {outcome.missing}")
            elif outcome.missing:
                texts.append(outcome.missing)
        return "; ".join(texts)


def read_outcome(point: Point, folder: epath.Path) -> Outcome:
    """How far the run of `point` in `folder` is, by its events and its records."""
    events = storage.read_records(folder / "events.jsonl")
    if not events:
        return Outcome(point, {}, "not begun")
    last, step = events[-1], events[-1]["step"]
    if last["event"] == "error":
        what = "diverged" if last["type"] == _DIVERGED else last["type"]
        return Outcome(point, {}, f"{what} at step {step}")
    told = [r for r in log.read_records(folder) if r["split"] != "train"]
    if any(record["split"].endswith(log.AVERAGED) for record in told):
        told = [record for record in told if record["split"].endswith(log.AVERAGED)]
    named = [(record["split"].removesuffix(log.AVERAGED), record) for record in told]
    tested = [record["step"] for split, record in named if split == "test"]
    of_step = tested[-1] if tested else step  # the best's, where that is asked for
    records = {split: record for split, record in named if record["step"] == of_step}
    if last["event"] != "complete" or not records:
        return Outcome(point, {}, f"incomplete, at step {step}")
    return Outcome(point, records, "")


def rows(points: Sequence[Point], workdir: epath.Path) -> list[Row]:
    """The rows of a sweep whose runs are in folders of `workdir`, in their order."""
    by_setting: dict[str, Row] = {}
    for point in points:
        outcome = read_outcome(point, workdir / point.folder)
        values = {name: v for name, v in point.values.items() if name != SEED}
        row = by_setting.setdefault(repr(values), Row(values, ()))
        outcomes = (*row.outcomes, outcome)
        by_setting[repr(values)] = dataclasses.replace(row, outcomes=outcomes)
    return list(by_setting.values())


def splits_of(rows: Sequence[Row]) -> list[str]:
    """The splits of which any run has a record: validation, then test."""
    there = {
        split for row in rows for outcome in row.outcomes for split in outcome.records
    }
    return [split for split in ("validation", "test") if split in there]


def told_metrics(metrics: Metrics) -> list[Metric]:
    """What decides, and the loss."""
    deciding, loss = metrics_lib.deciding(metrics), metrics[0]
    return [deciding] if deciding is loss else [deciding, loss]


def is_product(rows: Sequence[Row]) -> bool:
    """Whether each value of a field is there with each of the others."""
    counts = (len({repr(row.values[name]) for row in rows}) for name in rows[0].values)
    return len(rows) == math.prod(counts)


def unusual(rows: Sequence[Row]) -> list[str]:
    """Of each row the values that most rows do not have, in words."""
    usual, labels = _usual(rows), []
    for row in rows:
        apart = {k: v for k, v in row.values.items() if repr(v) != repr(usual[k])}
        told = ", ".join(f"{short_name(k)}={v}" for k, v in apart.items())
        labels.append(told or "the usual")
    return labels


def usual_line(rows: Sequence[Row]) -> str:
    """The values that most rows have, for people: what `unusual` leaves out."""
    return "the usual: " + ", ".join(f"{k}={v}" for k, v in _usual(rows).items())


def _usual(rows: Sequence[Row]) -> dict[str, Any]:
    """Of each field the value that most rows have, the first of several."""
    usual: dict[str, Any] = {}
    for name in rows[0].values:
        values = [repr(row.values[name]) for row in rows]
        most = max(values, key=values.count)
        usual[name] = rows[values.index(most)].values[name]
    return usual


def text(rows: Sequence[Row], metrics: Metrics) -> str:
    """The table for people, and which setting is the best by validation."""
    import tabulate

    columns = [(s, m) for s in splits_of(rows) for m in told_metrics(metrics)]
    is_whole = not any(row.missing for row in rows)
    settings: list[tuple[str, ...]] = [tuple(map(str, r.values.values())) for r in rows]
    names, usual = tuple(rows[0].values), []
    if not is_product(rows):
        labels = (textwrap.wrap(label, _WIDTH) for label in unusual(rows))
        settings = [("\n".join(label),) for label in labels]
        names, usual = ("setting",), ["", *textwrap.wrap(usual_line(rows), 2 * _WIDTH)]
    header = [*names, "runs", *(f"{s} {m.name}" for s, m in columns)]
    header += [] if is_whole else ["incomplete"]
    lines = []
    for setting, row in zip(settings, rows, strict=True):
        spreads = ((row.spread(*column), column[1]) for column in columns)
        lines.append(
            [
                *setting,
                f"{row.complete}/{len(row.outcomes)}",
                *(spread.text(metric) if spread else "" for spread, metric in spreads),
                *([] if is_whole else [row.missing]),
            ]
        )
    table = tabulate.tabulate(lines, header, "simple", disable_numparse=True)
    return "\n".join([table, *usual, *_best(rows, metrics)])


def _best(rows: Sequence[Row], metrics: Metrics) -> list[str]:
    """A line, where there is a choice: by test only if there is no validation.

    Of the rows all of whose runs are complete: the others' means may lack the worst. Of
    equal ones, but for the rounding of a mean, the one with the smaller loss.
    """
    there = splits_of(rows)
    if not there:
        return []
    split, metric = there[0], metrics_lib.deciding(metrics)

    def mean(row: Row, metric: Metric) -> float:
        spread = row.spread(split, metric)
        return spread.mean if spread else math.nan

    def rank(row: Row) -> tuple[float, float]:
        return round(metric.score(mean(row, metric))[1], 9), -mean(row, metrics[0])

    whole = [row for row in rows if not row.missing and row.spread(split, metric)]
    if len(whole) < 2:
        return []
    best = max(whole, key=rank)
    setting = ", ".join(f"{name}={v!r}" for name, v in best.values.items())
    spread = best.spread(split, metric)
    assert spread is not None  # as of all of `whole`
    return [f"best by {split} {metric.name}: {setting}: {spread.text(metric)}"]


def write_csv(rows: Sequence[Row], metrics: Metrics, path: epath.Path) -> None:
    """Writes the table as .csv, whole or not at all.

    Columns: the swept fields but the seed; `runs` and how many of them are `complete`;
    SPLIT_METRIC of validation and test, the deciding metric's and the loss's mean, and
    where the seed is swept SPLIT_METRIC_std, _min and _max; `incomplete` in words.

    Raises:
      RunDirectoryError: it cannot be written.
    """
    columns = [(s, m) for s in splits_of(rows) for m in told_metrics(metrics)]
    has_seeds = any(SEED in o.point.values for row in rows for o in row.outcomes)
    ends = ("", "_std", "_min", "_max") if has_seeds else ("",)
    header = [*rows[0].values, "runs", "complete"]
    header += [f"{s}_{m.name}{end}" for s, m in columns for end in ends]
    lines = []
    for row in rows:
        cells = [*row.values.values(), len(row.outcomes), row.complete]
        for spread in (row.spread(*column) for column in columns):
            numbers: list[float | None] = [None] * 4
            if spread:
                numbers = [spread.mean, spread.std]
                numbers += [min(spread.values), max(spread.values)]
            cells += numbers[: len(ends)]
        lines.append([*cells, row.missing])
    with (
        storage.whole_file(path, storage.RunDirectoryError) as file,
        file.open("w", newline="") as stream,
    ):
        csv.writer(stream).writerows([[*header, "incomplete"], *lines])
