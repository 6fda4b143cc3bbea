"""A run's curves as a picture."""

from typing import Any

from etils import epath

from vgg_flax import metrics as metrics_lib
from vgg_flax.metrics import Metric, Metrics

_COLORS = {"train": "#9aa0a6", "validation": "#1a73e8", "test": "#d93025"}


def draw_curves(
    records: list[dict[str, Any]], metrics: Metrics, path: epath.Path
) -> None:
    """The loss, and what decides, over epochs, of each split, as a PNG."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    loss, deciding = metrics[0], metrics_lib.deciding(metrics)
    panels = [loss] if deciding is loss else [loss, deciding]
    figure = Figure(figsize=(5 * len(panels), 4), dpi=100, layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, metric in zip(all_axes, panels, strict=True):
        for split, color in _COLORS.items():
            chosen = [r for r in records if r["split"] == split]
            if not chosen:
                continue
            values = [shown(metric, r[metric.name]) for r in chosen]
            last = f"{values[-1]:{metric.format if metric.is_share else '.3g'}}"
            axes.plot(
                [r["epoch"] for r in chosen],
                values,
                color=color,
                marker="o" if split == "test" else None,
                label=f"{split} {last}",
            )
        axes.set(xlabel="epoch", ylabel=metric.title or metric.name)
        if metric is loss and all(line.get_ydata().min() > 0 for line in axes.lines):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if metric.is_share:
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:  # none yet: a test before the first train record
            axes.legend(frameon=False)
    with path.open("wb") as stream:
        figure.savefig(stream, format="png")


def shown(metric: Metric, value: float) -> float:
    """Of hits, the errors: what is left of them is what people look at."""
    return 1 - value if metric.is_share and metric.larger_is_better else value
