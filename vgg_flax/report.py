"""What people look at while a run goes on and after: lines, records, curves."""

import json
import sys
import time
from typing import Any

import tqdm
from etils import epath

_COLORS = {"train": "#9aa0a6", "validation": "#1a73e8", "test": "#d93025"}


class Log:
    """A run's records: `metrics.jsonl`, TensorBoard files, `curves.png`, and lines.

    On a terminal a progress bar shows speed and time left; elsewhere plain lines do.
    In all processes but the first it does nothing.
    """

    def __init__(
        self, workdir: epath.Path, *, start_step: int, total_steps: int, active: bool
    ):
        """Opens the files; records after `start_step`, of a killed run, are dropped."""
        self._workdir, self._active = workdir, active
        self._total_steps, self._start_step = total_steps, start_step
        self._bar = None
        self.records: list[dict[str, Any]] = []
        if not active:
            return
        import tensorboardX

        self._path = workdir / "metrics.jsonl"
        self.records = [r for r in read_records(workdir) if r["step"] <= start_step]
        self._path.write_text("".join(json.dumps(r) + "\n" for r in self.records))
        self._stream = self._path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1
        )
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                initial=start_step, total=total_steps, unit="step", dynamic_ncols=True
            )

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        if self._active:
            tqdm.tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def advance(self, images_per_second: float | None = None) -> None:
        """One step is done."""
        if self._bar is not None:
            if images_per_second is not None:
                self._bar.set_postfix_str(f"{images_per_second:,.0f} images/s")
            self._bar.update()

    def record(self, record: dict[str, Any]) -> None:
        """Writes a record of a step and split to the files, and a line of it."""
        if not self._active:
            return
        record = {**record, "time": round(time.time(), 3)}
        self.records.append(record)
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in ("step", "time"):
                tag = f"{record['split']}/{name}"
                self._board.add_scalar(tag, value, record["step"])
        if self._bar is None or record["split"] != "train":
            self.say(self._line(record))

    def draw(self) -> None:
        """Redraws `curves.png` and lets TensorBoard see what was written."""
        if self._active:
            draw_curves(self.records, self._workdir / "curves.png")
            self._board.flush()

    def close(self) -> None:
        """Closes the files and the bar."""
        if self._bar is not None:
            self._bar.close()
        if self._active:
            self._stream.close()
            self._board.close()

    def _line(self, record: dict[str, Any]) -> str:
        parts = [
            f"step {record['step']:>{len(str(self._total_steps))}}/{self._total_steps}",
            f"epoch {record['epoch']:.1f}",
            f"{record['split']:<10}",
            f"loss {record['loss']:.4f}",
            f"top1 {record['top1']:.2%}",
            f"top5 {record['top5']:.2%}",
        ]
        if "images_per_second" in record:
            parts.append(f"{record['images_per_second']:,.0f} images/s")
        if "seconds_left" in record:
            parts.append(f"{format_time(record['seconds_left'])} left")
        if record.get("skipped"):
            parts.append(f"{record['skipped']} skipped")
        return "  ".join(parts)


def read_records(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of `WORKDIR/metrics.jsonl`; a cut-off last line is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


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
