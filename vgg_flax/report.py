"""What people look at after a run: the curves as a picture, the result as a line."""

from typing import Any

from etils import epath

_COLORS = {"train": "#9aa0a6", "validation": "#1a73e8", "test": "#d93025"}


def result_line(record: dict[str, Any], workdir: epath.PathLike) -> str:
    """A test record as the run's last line."""
    count = record["count"]
    return (
        f"test top1 {record['top1']:.2%} ({record['top1_count']}/{count}), "
        f"top5 {record['top5']:.2%} ({record['top5_count']}/{count}), "
        f"loss {record['loss']:.4f}, step {record['step']}, {workdir}"
    )


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


def format_time(seconds: float) -> str:
    """Seconds as people say them: "45 s", "12 min", "3.4 h", "2.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
