"""What a run tells while it goes on: records, lines, a progress bar, its speed."""

import contextlib
import math
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import tqdm
from etils import epath

from vgg_flax import events, report, run_directory
from vgg_flax.config import VGGFlaxError

_RECORDS = "metrics.jsonl"


class NonFiniteError(VGGFlaxError):
    """The loss, the gradients or the params stopped being numbers."""


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
        self._file = run_directory.RecordFile(workdir / _RECORDS, self.records)
        with self._written():
            self._board = _Board(workdir / "tensorboard", start_step + 1)
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
                report.draw_curves(self.records, self._workdir / "curves.png")
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
            parts.append(f"{report.format_time(record['seconds_left'])} left")
        if record.get("skipped"):
            parts.append(f"{record['skipped']} skipped")
        return "  ".join(parts)


class _Board:
    """TensorBoard's file of events, written by whoever calls.

    tensorboardX's `SummaryWriter` has a thread for it, which dies of a full disk, and
    the loop then waits for ever for a place in its queue.
    """

    def __init__(self, folder: epath.Path, purge_step: int):
        """Opens a new file, which replaces what others say of that step and later."""
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        proto: Any = event_pb2  # its names are made at run time
        self._event, self._scalar = proto.Event, summary.scalar
        record_writer.directory_check(str(folder))
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._file = record_writer.RecordWriter(str(folder / name))
        self.flush, self.close = self._file.flush, self._file.close
        start = proto.SessionLog(status=proto.SessionLog.START)
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=start)

    def add(self, record: dict[str, Any]) -> None:
        """Writes the record's numbers, each as SPLIT/NAME."""
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in ("step", "time"):
                scalar = self._scalar(f"{record['split']}/{name}", value)
                self._write(step=record["step"], summary=scalar)

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())


class Meter:
    """Metrics between two log records, read one step behind the step just sent.

    So the host waits only for a step whose successor is queued already, and a loss
    that is not finite is known one step later.
    """

    def __init__(
        self,
        log: Log,
        *,
        batch_size: int,
        steps_per_epoch: float,
        total_steps: int,
        log_every_steps: int,
        goodput: events.Goodput,
    ):
        self._log, self._batch_size = log, batch_size
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        self._log_every_steps, self._goodput = log_every_steps, goodput
        self._pending: list[tuple[int, Any]] = []
        self._start_window()
        self.restart_clock()
        self._speed: float | None = None  # seconds a step
        self._announced = False

    def add(self, step: int, metrics: Any) -> None:
        """Takes the metrics of a step just sent; reads those of the one before."""
        self._pending.append((step, metrics))
        while len(self._pending) > 1:
            self._read()

    def read_all(self) -> None:
        """Waits for the step just sent."""
        while self._pending:
            self._read()

    def restart_clock(self) -> None:
        """Leaves the time since the last step (evaluating, saving) out of the speed."""
        self._clock, self._clocked_steps = time.perf_counter(), 0
        self._goodput.rest()

    def _start_window(self) -> None:
        self._sums = {"loss": 0.0, "top1": 0, "top5": 0, "count": 0}
        self._steps = 0

    def _read(self) -> None:
        step, metrics = self._pending.pop(0)
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self._goodput.step_ended()
        self._check_finite(step, values)
        for name in self._sums:
            self._sums[name] += values[name]
        self._steps += 1
        self._clocked_steps += 1
        if self._clocked_steps >= 2:  # the first one waits for the pipeline to fill
            self._speed = (time.perf_counter() - self._clock) / self._clocked_steps
        images_per_second = self._batch_size / self._speed if self._speed else None
        self._log.advance(images_per_second)
        left = (self._total_steps - step) * (self._speed or 0)
        if not self._announced and self._clocked_steps == 10:
            self._announced = True
            self._log.say(
                f"about {report.format_time(left)} to go, at {images_per_second:,.0f} "
                "images/s"
            )
        is_last = step == self._total_steps
        if step % self._log_every_steps == 0 or is_last:
            self._record(step, values, images_per_second, left)

    def _record(
        self,
        step: int,
        values: dict[str, float],
        images_per_second: float | None,
        left: float,
    ) -> None:
        sums, count = self._sums, max(1, self._sums["count"])
        skipped = self._steps * self._batch_size - sums["count"]
        record = {
            "step": step,
            "epoch": step / self._steps_per_epoch,
            "split": "train",
            "loss": sums["loss"] / count,
            "top1": sums["top1"] / count,
            "top5": sums["top5"] / count,
            "count": sums["count"],
            "learning_rate": values["learning_rate"],
            "gradient_norm": values["gradient_norm"],
            "parameter_norm": values["parameter_norm"],
        }
        if images_per_second:
            record |= {
                "images_per_second": round(images_per_second, 1),
                "seconds_left": round(left, 1),
            }
        for name, value in self._goodput.facts().items():
            if name.startswith("goodput"):
                record[name] = value
        if skipped:
            record["skipped"] = skipped
        self._log.record(record)
        self._start_window()

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        for name in ("loss", "gradient_norm", "parameter_norm"):
            if not math.isfinite(values[name]):
                raise NonFiniteError(
                    f"{name.replace('_', ' ')} is {values[name]} at step {step}, with "
                    f"learning rate {values['learning_rate']:g}: lower "
                    "--config.optimizer.learning_rate or add warmup_epochs; the last "
                    "good checkpoint is kept"
                )


def bar(total: int, unit: str, initial: int = 0, *, active: bool = True) -> tqdm.tqdm:
    """A progress bar on stderr, which `update(n)` moves on; none off a terminal."""
    return tqdm.tqdm(
        total=total,
        initial=initial,
        unit=unit,
        dynamic_ncols=True,
        disable=None if active else True,
    )


def read_records(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of `WORKDIR/metrics.jsonl`; a damaged line is left out."""
    return run_directory.read_records(epath.Path(workdir) / _RECORDS)
