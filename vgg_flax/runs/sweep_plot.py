"""What the runs of a sweep came to as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vgg_flax.metrics import Metric, Metrics
from vgg_flax.runs import curves, sweep_table
from vgg_flax.runs.sweep_table import Row

_LOG = 8.0  # of the largest value over the smallest: from there on an axis of powers


def draw(rows: Sequence[Row], metrics: Metrics, path: epath.Path) -> None:
    """What decides, and the loss, over a swept field, as a PNG.

    A dot is a run, a line goes through the means over seeds. The field is the one with
    the most values, of numbers if there is one; each setting of the others is a line.
    Validation is shown, by which one chooses, or test where there is none; at least one
    run is complete.
    """
    from matplotlib import ticker
    from matplotlib.figure import Figure

    split, *_ = sweep_table.splits_of(rows)
    name = _field(rows)
    places, is_log = _places([row.values.get(name) for row in rows])
    panels = sweep_table.told_metrics(metrics)
    figure = Figure(figsize=(5 * len(panels), 4), dpi=100, layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, metric in zip(all_axes, panels, strict=True):
        lines: dict[str, list[tuple[float, list[float]]]] = {}
        for place, row in zip(places, rows, strict=True):
            others = {k: v for k, v in row.values.items() if k != name}
            label = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in others.items())
            if shown := _shown(row, split, metric):
                lines.setdefault(label, []).append((place, shown))
        for label, line in lines.items():
            line.sort(key=lambda one: one[0])
            means = [float(np.mean(values)) for _, values in line]
            (drawn,) = axes.plot([x for x, _ in line], means, marker="_", label=label)
            dots = [(x, value) for x, values in line for value in values]
            axes.scatter(*zip(*dots, strict=True), s=16, color=drawn.get_color())
        axes.set(xlabel=name, ylabel=f"{split} {metric.title or metric.name}")
        if is_log:
            axes.set_xscale("log")
        values = (str(row.values.get(name, "")) for row in rows)
        ticks = sorted(set(zip(places, values, strict=True)))
        axes.set_xticks(*zip(*ticks, strict=True))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        if metric.is_share:
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if any(lines):
            axes.legend(frameon=False)
    with path.open("wb") as stream:
        figure.savefig(stream, format="png")


def _shown(row: Row, split: str, metric: Metric) -> list[float]:
    spread = row.spread(split, metric)
    return [curves.shown(metric, value) for value in spread.values] if spread else []


def _field(rows: Sequence[Row]) -> str:
    """The field along the axis; "" where nothing but the seed is swept."""

    def rank(name: str) -> tuple[bool, int]:
        values = [row.values[name] for row in rows]
        return all(map(_is_number, values)), len(set(map(repr, values)))

    return max(rows[0].values, key=rank, default="")


def _places(values: Sequence[Any]) -> tuple[list[float], bool]:
    """Where values stand on the axis, and whether it is one of powers."""
    if all(map(_is_number, values)):
        is_log = min(values) > 0 and max(values) >= _LOG * min(values)
        return [float(value) for value in values], is_log
    order = list(dict.fromkeys(map(repr, values)))
    return [float(order.index(repr(value))) for value in values], False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
