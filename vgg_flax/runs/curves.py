"""What people look at: a run's curves and result, an evaluation's table, its rows."""

from typing import Any

from etils import epath

_COLORS = {"train": "#9aa0a6", "validation": "#1a73e8", "test": "#d93025"}


def draw_curves(records: list[dict[str, Any]], path: epath.Path) -> None:
    """Loss and error over epochs, of each split, as a PNG."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    for split, color in _COLORS.items():
        chosen = [r for r in records if r["split"] == split]
        if not chosen:
            continue
        epochs = [r["epoch"] for r in chosen]
        marker = "o" if split == "test" else None
        last = chosen[-1]
        loss_axes.plot(
            epochs,
            [r["loss"] for r in chosen],
            color=color,
            marker=marker,
            label=f"{split} {last['loss']:.3g}",
        )
        error_axes.plot(
            epochs,
            [1 - r["top1"] for r in chosen],
            color=color,
            marker=marker,
            label=f"{split} {1 - last['top1']:.2%}",
        )
    loss_axes.set(xlabel="epoch", ylabel="cross entropy (nats)", yscale="log")
    error_axes.set(xlabel="epoch", ylabel="top-1 error", ylim=(0, None))
    error_axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    for axes in (loss_axes, error_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:  # none yet: a test before the first train record
            axes.legend(frameon=False)
    with path.open("wb") as stream:
        figure.savefig(stream, format="png")
