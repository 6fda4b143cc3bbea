"""What people look at: a run's curves and result, an evaluation's table, its rows."""

import csv
import importlib.util
from typing import Any

from etils import epath

from vgg_flax.config import ConfigError

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


def print_evaluation(result: dict[str, Any]) -> None:
    """What `experiments.evaluate` found, as a table; the paper's errors beside."""
    import rich.box
    import rich.console
    import rich.table

    has_paper = any("paper" in row for row in result["experiments"])
    table = rich.table.Table(box=rich.box.SIMPLE, title_justify="left")
    table.add_column("experiment", overflow="fold")
    for column in ("top-1 error %", "top-5 error %", "top-1", "top-5", "NLL"):
        table.add_column(column, justify="right")
    if has_paper:
        for column in ("paper top-1", "paper top-5"):
            table.add_column(column, justify="right")
    for row in result["experiments"]:
        cells = [
            row["name"],
            f"{row['top1_error_percent']:.2f}",
            f"{row['top5_error_percent']:.2f}",
            f"{row['top1']:.2%} ({row['top1_count']})",
            f"{row['top5']:.2%} ({row['top5_count']})",
            f"{row['nll']:.4f}",
        ]
        if has_paper:
            cells += [
                f"{row['paper']['top1_error_percent']:.1f}",
                f"{row['paper']['top5_error_percent']:.1f}",
            ]
        table.add_row(*cells)
    console = rich.console.Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width: fold nothing
    console.print(table)
    data = result["data"]
    name = f"{data['name']}/{data['split']}".rstrip("/")
    console.print(f"{result['count']} images of {name}", soft_wrap=True)


def write_predictions(
    result: dict[str, Any], images: list[dict[str, Any]], path: epath.Path
) -> None:
    """One row an image (and experiment) as .csv or .parquet.

    Columns: experiment, key, labels (more than one: separated by spaces), rank, nll,
    and class_1, probability_1 and so on, the five most probable.

    Raises:
      ConfigError: another suffix, or .parquet without pyarrow.
    """
    check_predictions(path)
    rows = []
    for i, experiment in enumerate(result["experiments"]):
        for image in images:
            outcome = image["experiments"][i]
            row = {
                "experiment": experiment["name"],
                "key": image["key"],
                "labels": " ".join(map(str, image["labels"])),
                "rank": outcome["rank"],
                "nll": outcome["nll"],
            }
            best = zip(outcome["classes"], outcome["probabilities"], strict=True)
            for k, (index, probability) in enumerate(best, start=1):
                row |= {f"class_{k}": index, f"probability_{k}": probability}
            rows.append(row)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        with path.open("wb") as stream:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
        return
    with path.open("w") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_predictions(path: epath.Path) -> None:
    """Raises ConfigError where `write_predictions` could not; makes the folder."""
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--predictions {path}: expected a name in .csv or .parquet")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f"--predictions {path} needs the package pyarrow: pip install "
            "'vgg-flax[parquet]', or ask for .csv"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
