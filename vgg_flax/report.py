"""What people look at: a run's curves and result, an evaluation's table, its rows."""

import csv
import importlib.util
from typing import Any

import jax
import numpy as np
from etils import epath

from vgg_flax.config import Config, ConfigError
from vgg_flax.plan import Plan

_COLORS = {"train": "#9aa0a6", "validation": "#1a73e8", "test": "#d93025"}


def result_line(record: dict[str, Any], workdir: epath.PathLike) -> str:
    """A test record as the run's last line."""
    count = record["count"]
    return (
        f"test top1 {record['top1']:.2%} ({record['top1_count']}/{count}), "
        f"top5 {record['top5']:.2%} ({record['top5_count']}/{count}), "
        f"loss {record['loss']:.4f}, step {record['step']}, {workdir}"
    )


def introduction(
    config: Config,
    workdir: epath.Path,
    plan: Plan,
    *,
    parameters: int,
    examples: dict[str, int],
    step: int,
) -> list[str]:
    """What a run says before it steps.

    Args:
      config: the run's.
      workdir: the run's.
      plan: the run's.
      parameters: how many numbers the net has.
      examples: how many each split has.
      step: where the run stands; 0: at its start.
    """
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    lines = [
        f"{workdir}: {config.model.variant}, seed {config.seed}",
        f"devices: {devices} in {jax.process_count()} process(es)",
        f"parameters: {parameters:,}",
        "examples: " + ", ".join(f"{name} {n:,}" for name, n in examples.items()),
        f"steps: {plan.total_steps:,} of {config.data.batch_size} examples, "
        f"{plan.steps_per_epoch:,.1f} an epoch",
    ]
    return lines + [f"resumed at step {step}"] * (0 < step < plan.total_steps)


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


def draw_heatmaps(
    path: epath.Path,
    title: str,
    picture: np.ndarray,
    probability: np.ndarray,
    grad_cam: np.ndarray,
) -> None:
    """A picture, and beside it a class's two maps laid over it, as a PNG.

    Args:
      path: of the PNG.
      title: over all.
      picture: uint8 `[height, width, 1 or 3]`.
      probability: `[height, width]`; its colour bar starts at 0.
      grad_cam: `[height, width]`; shown as a share of its largest value.
    """
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    side = 4.0 / max(height, width)  # inches a pixel
    figure = Figure(
        figsize=(3 * width * side + 1.2, height * side + 0.8),
        dpi=120,
        layout="constrained",
    )
    # A class may be called "$\\alpha$" and is no formula.
    figure.suptitle(title, fontsize="x-large", parse_math=False)
    panels = figure.subplots(1, 3)
    grey = picture.mean(axis=2)
    color = {"alpha": 0.6, "cmap": "inferno", "vmin": 0}
    for axes in panels:
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    if picture.shape[2] == 3:
        panels[0].imshow(picture)
    shown = panels[1].imshow(probability, **color, vmax=probability.max())
    panels[2].imshow(grad_cam, **color, vmax=grad_cam.max() or 1)
    names = (f"{width} x {height} pixels", "probability at each position", "Grad-CAM")
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(name, fontsize="medium")
        axes.set_axis_off()
    bar = figure.colorbar(shown, cax=panels[1].inset_axes((1.02, 0, 0.04, 1)))
    bar.ax.tick_params(labelsize="small")
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


def evaluation_table(result: dict[str, Any]) -> str:
    """What `scoring.evaluate` returned as a table, beside the paper's figures."""
    import tabulate

    header = ["experiment", "top-1 error %", "top-5 error %", "top-1", "top-5", "NLL"]
    has_paper = any("paper" in row for row in result["experiments"])
    if has_paper:
        header += ["paper top-1", "paper top-5"]
    rows = []
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
        rows.append(cells)
    align = ("left", *["right"] * (len(header) - 1))
    table = tabulate.tabulate(
        rows, header, "simple", colalign=align, disable_numparse=True
    )
    data = result["data"]
    name = f"{data['name']}/{data['split']}".rstrip("/")
    counted = f"{result['count']:,} images of {name}"
    if result["without_label"]:
        counted += f", {result['without_label']:,} more have no label"
    return f"{table}\n\n{counted}"


def compile_tables(told: dict[str, Any]) -> str:
    """What `roofline.report` found, for people."""
    import tabulate

    memory, roofline, donation = told["memory"], told["roofline"], told["donation"]
    mib, mb = 2**20, 1e6
    sizes = [
        (kind, f"{size / mib:,.0f}", f"{size / memory['chip']:.1%}")
        for kind, size in memory.items()
    ]
    exchanges = [
        (
            e["kind"],
            f"{e['bytes'] / mb:,.2f}",
            "yes" if e["asynchronous"] else "no",
            f"{e['seconds'] * 1e3:.3f}",
            f"{e['covered_seconds'] * 1e3:.3f}",
            f"{e['hidden']:.0%}",
        )
        for e in told["collectives"]
    ]
    height, width = told["image_size"]
    versions = ", ".join(f"{k} {v}" for k, v in told["versions"].items())
    whole = "all" if donation["complete"] else "NOT all"
    lines = [
        f"{told['variant']} {told['program']}, {told['dtype']}, {told['chips']} x "
        f"{told['chip']}, {told['per_chip_batch']} images of {height}x{width} a chip",
        versions,
        "",
        tabulate.tabulate(
            sizes,
            ("memory of a chip", "MiB", "of all"),
            colalign=("left", *["right"] * 2),
        ),
        "",
        f"{told['flops']['image'] / 1e9:,.1f} GFLOP an image, "
        f"{told['flops']['step'] / 1e12:,.3f} TFLOP a step and chip",
    ]
    if told["program"] == "train":
        lines.append(
            f"donated: {whole} of the state's {donation['state'] / mib:,.0f} MiB"
        )
    lines += [
        "",
        tabulate.tabulate(
            exchanges,
            ("exchange", "MB", "async", "needs ms", "covered ms", "hidden"),
            colalign=("left", *["right"] * 5),
            disable_numparse=True,
        ),
        f"exposed: {told['exposed_bytes'] / mb:,.1f} of "
        f"{told['exchanged_bytes'] / mb:,.1f} MB exchanged; the params have "
        f"{told['parameter_bytes'] / mb:,.1f} MB",
        "",
        f"estimate from published peaks, not measured: a step "
        f"{roofline['step_seconds']:.4f} s (compute "
        f"{roofline['compute_seconds']:.4f}, memory "
        f"{roofline['memory_seconds']:.4f}, exposed exchanges "
        f"{roofline['exposed_exchange_seconds']:.4f}), "
        f"{roofline['images_per_second']:,.0f} images/s",
    ]
    return "\n".join(lines)


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
    check_output("--predictions", path)


def check_output(flag: str, path: epath.Path) -> None:
    """Makes the folder of `path`; raises ConfigError where no file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In several processes each tries a name of its own.
        there, own = path.exists(), f".{path.name}.{jax.process_index()}"
        tried = path if there else path.with_name(own)
        with tried.open("a"):
            pass
        if not there:
            tried.unlink()
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be written: {error}") from error
