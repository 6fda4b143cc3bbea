"""What a run tells while it goes on: records, lines, a progress bar."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import tqdm
from etils import epath

from vgg_flax import console, spelling, storage
from vgg_flax.errors import VGGFlaxError
from vgg_flax.metrics import Metrics
from vgg_flax.runs import curves
from vgg_flax.runs.events import Position
from vgg_flax.runs.tensorboard import Board
from vgg_flax.runs.waiting import MUCH_WAITING

_RECORDS = "metrics.jsonl"
AVERAGED = "_ema"  # behind a split's name, in records of the params' average
_DRAW_SECONDS = 10.0  # between two pictures


class LogError(VGGFlaxError):
    """What a run tells cannot be written."""


class Log:
    """A run's records: `metrics.jsonl`, TensorBoard files, `curves.png`, and lines.

    On a terminal a progress bar shows speed and time left; elsewhere plain lines do.
    In all processes but the first it only keeps the records.
    """

    def __init__(
        self,
        workdir: epath.Path,
        metrics: Metrics,
        *,
        start: Position,
        total_steps: int,
        active: bool,
        check: Callable[[], None] = lambda: None,
    ):
        """Opens the files, without the records of a killed run that come again.

        Those are all after the step where it starts, and that step's own validation,
        if it was not made when the step was saved. Before more is written `check` is
        called: `Lease.check`.
        """
        self._workdir, self._metrics, self._active = workdir, metrics, active
        self._check = check
        self._total_steps, self._drawn = total_steps, time.monotonic()
        self._bar = None
        # A validation that was not made when its step was saved comes again, too.
        self.records: list[dict[str, Any]] = [
            record
            for record in read_records(workdir)
            if record["step"] + (record["split"] != "train" and not start.validated)
            <= start.step
        ]
        if not active:
            return
        self._file = storage.RecordFile(workdir / _RECORDS, self.records)
        with self._written():
            self._board = Board(workdir / "tensorboard", start.step + 1)
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                initial=start.step, total=total_steps, unit="step", dynamic_ncols=True
            )

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        if self._active:
            tqdm.tqdm.write(spelling.line(text), file=sys.stdout)
            sys.stdout.flush()

    def advance(self, images_per_second: float | None = None) -> None:
        """One step is done."""
        if self._bar is not None:
            if images_per_second is not None:
                self._bar.set_postfix_str(f"{images_per_second:,.0f} images/s")
            self._bar.update()

    def record(self, record: dict[str, Any]) -> None:
        """Writes a record of a step and split to the files, and a line of it.

        Raises:
          LeaseError: the run's directory is another's by now.
        """
        record = {**record, "time": round(time.time(), 3)}
        self.records.append(record)
        if not self._active:
            return
        self._check()
        self._file.append(record)
        with self._written():
            self._board.add(record)
        if self._bar is None or record["split"] != "train":
            self.say(self._line(record))

    def draw(self, *, last: bool = False) -> None:
        """Redraws `curves.png` and lets TensorBoard see what was written.

        The picture, unless it is the `last` time, not so soon after the time before, or
        the start: it takes a good part of a second.
        """
        if not self._active:
            return
        self._check()
        is_due = time.monotonic() >= self._drawn + _DRAW_SECONDS
        with self._written():
            self._board.flush()
            if last or is_due:
                self._drawn = time.monotonic()
                path = self._workdir / "curves.png"
                curves.draw_curves(self.records, self._metrics, path)

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
            *(metric.text(record) for metric in self._metrics),
        ]
        if "images_per_second" in record:
            parts.append(f"{record['images_per_second']:,.0f} images/s")
        if "seconds_left" in record:
            parts.append(f"{console.format_time(record['seconds_left'])} left")
        if record.get("waiting_for_data", 0) >= MUCH_WAITING:
            parts.append(f"waiting for data {record['waiting_for_data']:.0%}")
        if record.get("skipped"):
            parts.append(f"{record['skipped']} skipped")
        return "  ".join(parts)


def read_records(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of `WORKDIR/metrics.jsonl`; a damaged line is left out."""
    return storage.read_records(epath.Path(workdir) / _RECORDS)


def result_line(
    record: dict[str, Any], metrics: Metrics, workdir: epath.PathLike
) -> str:
    """A record as the run's last line: "test top1 97.78% (352/360), ..."."""
    loss, *others = metrics
    parts = []
    for metric in others:
        text = metric.text(record)
        if metric.is_share:
            text += f" ({record[f'{metric.name}_count']}/{record['count']})"
        parts.append(text)
    parts += [loss.text(record)]
    if record.get("skipped"):
        parts.append(f"{record['skipped']} skipped")
    parts += [f"step {record['step']}", str(workdir)]
    return f"{record['split']} " + ", ".join(parts)
