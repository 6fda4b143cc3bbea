"""What a run tells while it goes on: records, lines, a progress bar, its speed."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import tqdm
from etils import epath

from vgg_flax import console, storage
from vgg_flax.errors import VGGFlaxError
from vgg_flax.runs import curves
from vgg_flax.runs.tensorboard import Board

_RECORDS = "metrics.jsonl"


class LogError(VGGFlaxError):
    """What a run tells cannot be written."""


class Log:
    """A run's records: `metrics.jsonl`, TensorBoard files, `curves.png`, and lines.

    On a terminal a progress bar shows speed and time left; elsewhere plain lines do.
    In all processes but the first it does nothing.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        start_step: int,
        evaluated: bool,
        total_steps: int,
        active: bool,
    ):
        """Opens the files, without the records of a killed run that come again.

        Those are all after `start_step`, and that step's own evaluation, if it was not
        `evaluated` when it was saved.
        """
        self._workdir, self._active = workdir, active
        self._total_steps, self._start_step = total_steps, start_step
        self._bar = None
        self.records: list[dict[str, Any]] = []
        if not active:
            return
        self.records = [
            record
            for record in read_records(workdir)
            if record["step"] < start_step + (evaluated or record["split"] == "train")
        ]
        self._file = storage.RecordFile(workdir / _RECORDS, self.records)
        with self._written():
            self._board = Board(workdir / "tensorboard", start_step + 1)
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
        self._file.append(record)
        with self._written():
            self._board.add(record)
        if self._bar is None or record["split"] != "train":
            self.say(self._line(record))

    def draw(self) -> None:
        """Redraws `curves.png` and lets TensorBoard see what was written."""
        if self._active:
            with self._written():
                curves.draw_curves(self.records, self._workdir / "curves.png")
                self._board.flush()

    def close(self) -> None:
        """Closes the files and the bar."""
        if self._bar is not None:
            self._bar.close()
        if self._active:
            with self._written():
                self._board.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LogError(
                f"cannot write the records of {self._workdir}: {error}; the finished "
                "checkpoints are intact: make room or access, then run again to resume"
            ) from error

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
            parts.append(f"{console.format_time(record['seconds_left'])} left")
        if record.get("skipped"):
            parts.append(f"{record['skipped']} skipped")
        return "  ".join(parts)


def read_records(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of `WORKDIR/metrics.jsonl`; a damaged line is left out."""
    return storage.read_records(epath.Path(workdir) / _RECORDS)


def result_line(record: dict[str, Any], workdir: epath.PathLike) -> str:
    """A test record as the run's last line."""
    count = record["count"]
    return (
        f"test top1 {record['top1']:.2%} ({record['top1_count']}/{count}), "
        f"top5 {record['top5']:.2%} ({record['top5_count']}/{count}), "
        f"loss {record['loss']:.4f}, step {record['step']}, {workdir}"
    )
