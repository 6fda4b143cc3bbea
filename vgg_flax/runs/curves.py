"""A run's curves as a picture."""

import math
from typing import Any

from etils import epath

from vgg_flax import metrics as metrics_lib
from vgg_flax.metrics import Metric, Metrics

# Of each split its color, and the size of a point: one does not hide another.
_STYLES = {
    "train": ("#9aa0a6", 9),
    "validation": ("#1a73e8", 7),
    "validation_ema": ("#188038", 6),
    "test": ("#d93025", 5),
    "test_ema": ("#e37400", 4),
}


def draw_curves(
    records: list[dict[str, Any]], metrics: Metrics, path: epath.Path
) -> None:
    """The loss, and what decides, over epochs, of each split, as a PNG."""
    with path.open("wb") as stream:
        plot(records, metrics).savefig(stream, format="png")


def plot(records: list[dict[str, Any]], metrics: Metrics) -> Any:
    """The Figure of Matplotlib's that `draw_curves` writes."""
    from matplotlib.figure import Figure

    loss, deciding = metrics[0], metrics_lib.deciding(metrics)
    panels = [loss] if deciding is loss else [loss, deciding]
    figure = Figure(figsize=(5 * len(panels), 4), dpi=100, layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, metric in zip(all_axes, panels, strict=True):
        for split, (color, size) in _STYLES.items():
            chosen = [r for r in records if r["split"] == split]
            if not chosen:
                continue
            values = [shown(metric, r[metric.name]) for r in chosen]
            last = f"{values[-1]:{metric.format if metric.is_share else '.3g'}}"
            axes.plot(
                [r["epoch"] for r in chosen],
                values,
                color=color,
                marker="o" if split.startswith("test") or len(chosen) == 1 else None,
                markersize=size,
                clip_on=False,  # what is 0, or the largest, lies on the edge
                label=f"{split} {last}",
            )
        axes.set(xlabel="epoch", ylabel=metric.title or metric.name)
        _scale(axes, metric, is_loss=metric is loss)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:  # none yet: a test before the first train record
            axes.legend(frameon=False)
    return figure


def _scale(axes: Any, metric: Metric, *, is_loss: bool) -> None:
    """The range of a panel, and ticks that are read at a glance: 0.01, 0.1, 1."""
    from matplotlib import ticker

    values = [y for line in axes.lines for y in line.get_ydata() if math.isfinite(y)]
    low, high = min(values, default=0), max(values, default=0)
    plain = ticker.FuncFormatter(lambda value, _: f"{value:.6g}")
    if is_loss and 0 < 10 * low <= high:
        axes.set_yscale("log")
        few = high < 100 * low  # decades have too few ticks of their own
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    elif not is_loss:
        axes.set_ylim(0, 1.05 * high if high > 0 else 1)
    axes.yaxis.set_major_formatter(
        ticker.PercentFormatter(1.0) if metric.is_share else plain
    )


def shown(metric: Metric, value: float) -> float:
    """Of hits, the errors: what is left of them is what people look at."""
    return 1 - value if metric.is_share and metric.larger_is_better else value
