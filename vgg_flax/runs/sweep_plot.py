"""What the runs of a sweep came to as a picture."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vgg_flax.config.sweep import short_name
from vgg_flax.metrics import Metric, Metrics
from vgg_flax.runs import curves, sweep_table
from vgg_flax.runs.sweep_table import Row

_LOG = 8.0  # of the largest value over the smallest: from there on an axis of powers


def draw(rows: Sequence[Row], metrics: Metrics, path: epath.Path) -> None:
    """What decides, and the loss, of each setting, as a PNG.

    A dot is a run. Of a product of values they stand over a swept field: the one with
    the most values, of numbers if there is one; each setting of the others is a line
    through the means over seeds. Settings that are no product (of fields that change
    together) stand in a list, each with what is unusual in it, its mean a stroke.

    Validation is shown, by which one chooses, or test where there is none; at least one
    run is complete.
    """
    from matplotlib import ticker
    from matplotlib.figure import Figure

    split, *_ = sweep_table.splits_of(rows)
    panels = sweep_table.told_metrics(metrics)
    is_product = sweep_table.is_product(rows)
    labels = [textwrap.fill(label, 44) for label in sweep_table.unusual(rows)]
    lines = sum(max(2, label.count("\n") + 1) for label in labels)
    size = (5 * len(panels), 4 if is_product else 1.5 + lines / 4)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=not is_product)[0]
    for axes, metric in zip(all_axes, panels, strict=True):
        title = f"{split} {metric.title or metric.name}"
        if is_product:
            _draw_lines(axes, rows, split, metric)
            axes.set_ylabel(title)
        else:
            _draw_list(axes, labels, rows, split, metric)
            axes.set_xlabel(title)
        if metric.is_share:
            axis = axes.yaxis if is_product else axes.xaxis
            axis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if not is_product:
        text = textwrap.fill(sweep_table.usual_line(rows), 70 * len(panels))
        figure.suptitle(text, fontsize="small", ha="left", x=0.01)
    with path.open("wb") as stream:
        figure.savefig(stream, format="png")


def _draw_lines(axes: Any, rows: Sequence[Row], split: str, metric: Metric) -> None:
    from matplotlib import ticker

    name = _field(rows)
    places, is_log = _places([row.values.get(name) for row in rows])
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    for place, row in zip(places, rows, strict=True):
        others = {k: v for k, v in row.values.items() if k != name}
        label = ", ".join(f"{short_name(k)}={v}" for k, v in others.items())
        if shown := _shown(row, split, metric):
            lines.setdefault(label, []).append((place, shown))
    for label, line in lines.items():
        line.sort(key=lambda one: one[0])
        means = [float(np.mean(values)) for _, values in line]
        (drawn,) = axes.plot([x for x, _ in line], means, marker="_", label=label)
        dots = [(x, value) for x, values in line for value in values]
        axes.scatter(*zip(*dots, strict=True), s=16, color=drawn.get_color())
    axes.set_xlabel(name)
    if is_log:
        axes.set_xscale("log")
    values = (str(row.values.get(name, "")) for row in rows)
    ticks = sorted(set(zip(places, values, strict=True)))
    axes.set_xticks(*zip(*ticks, strict=True))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    if any(lines):
        axes.legend(frameon=False)


def _draw_list(
    axes: Any, labels: Sequence[str], rows: Sequence[Row], split: str, metric: Metric
) -> None:
    for place, row in enumerate(rows):
        if shown := _shown(row, split, metric):
            dots = axes.scatter(shown, [place] * len(shown), s=16)
            axes.plot(np.mean(shown), place, "|", ms=18, color=dots.get_facecolor()[0])
    axes.set_yticks(range(len(rows)), labels, fontsize="small")
    axes.set_ylim(len(rows) - 0.5, -0.5)


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
