"""Metrics between two log records, and the speed, one step behind."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from vgg_flax import console
from vgg_flax import metrics as metrics_lib
from vgg_flax.errors import VGGFlaxError
from vgg_flax.metrics import Metrics
from vgg_flax.runs.goodput import Goodput
from vgg_flax.runs.log import Log
from vgg_flax.runs.waiting import MUCH_WAITING, Waiting


class NonFiniteError(VGGFlaxError):
    """The loss, the gradients or the params stopped being numbers."""


class Meter:
    """Metrics between two log records, read one step behind the step just sent.

    So the host waits only for a step whose successor is queued already, and a loss
    that is not finite is known one step later.
    """

    def __init__(
        self,
        log: Log,
        metrics: Metrics,
        *,
        batch_size: int,
        epoch_at: Callable[[int], float],
        total_steps: int,
        log_every_steps: int,
        kept: Callable[[], int | None],
        goodput: Goodput,
        faster_data: str,
    ):
        """Begins with nothing.

        Args:
          log: that is told.
          metrics: of the objective.
          batch_size: global.
          epoch_at: how many epochs a number of updates comes to.
          total_steps: of the run.
          log_every_steps: from one record to the next.
          kept: the last step that is saved, if there is one.
          goodput: that is told of the steps' ends.
          faster_data: what to do where the devices wait for data, for people.
        """
        self._log, self._metrics, self._batch_size = log, metrics, batch_size
        self._epoch_at, self._total_steps = epoch_at, total_steps
        self._log_every_steps, self._goodput = log_every_steps, goodput
        self._kept = kept
        self._faster_data, self._waiting = faster_data, Waiting()
        self._pending: list[tuple[int, Any]] = []
        self._start_window()
        self._restart_clock()
        self._speed: float | None = None  # seconds a step
        self._announced = self._told_waiting = False

    def drawn(self, batches: Iterable[Any]) -> Iterator[Any]:
        """`batches`, drawn where it is seen whether the devices wait for them."""
        return self._waiting.drawn(batches)

    def add(self, step: int, sums: Any) -> None:
        """Takes what a step just sent returned; reads that of the one before."""
        self._waiting.step_sent(sums)
        self._pending.append((step, sums))
        while len(self._pending) > 1:
            self._read()

    def read_all(self) -> None:
        """Waits for the step just sent."""
        while self._pending:
            self._read()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Reads the step just sent; leaves what follows (saving) out of the speed."""
        self.read_all()
        yield
        self._restart_clock()

    def _restart_clock(self) -> None:
        """Leaves the time since the last step (evaluating, saving) out of the speed."""
        self._clock, self._clocked_steps = time.perf_counter(), 0
        self._goodput.rest()

    def _start_window(self) -> None:
        self._sums = dict.fromkeys([*(m.name for m in self._metrics), "count"], 0)
        self._steps = 0
        self._waited = self._waiting.seconds
        self._productive = self._goodput.productive_seconds

    def _read(self) -> None:
        step, sums = self._pending.pop(0)
        values = {name: value.item() for name, value in jax.device_get(sums).items()}
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
                f"about {console.format_time(left)} to go, at {images_per_second:,.0f} "
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
        skipped = self._steps * self._batch_size - self._sums["count"]
        record = {
            "step": step,
            "epoch": self._epoch_at(step),
            "split": "train",
            **metrics_lib.means(self._metrics, self._sums),
            "count": self._sums["count"],
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
        productive = self._goodput.productive_seconds - self._productive
        if productive > 0:
            waited = self._waiting.seconds - self._waited
            record["waiting_for_data"] = round(min(1.0, waited / productive), 3)
        self._log.record(record)
        self._tell_waiting(record.get("waiting_for_data", 0.0))
        self._start_window()

    def _tell_waiting(self, share: float) -> None:
        """Says, once in a start, that the devices wait for data, if they do."""
        if share >= MUCH_WAITING and not self._told_waiting:
            self._told_waiting = True
            self._log.say(
                f"waiting for data {share:.0%} of the time; what helps: "
                f"{self._faster_data}"
            )

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        for name in ("loss", "gradient_norm", "parameter_norm"):
            if not math.isfinite(values[name]):
                kept = self._kept()
                raise NonFiniteError(
                    f"{name.replace('_', ' ')} is {values[name]} at step {step}, with "
                    f"learning rate {values['learning_rate']:g}: lower "
                    "--config.optimizer.learning_rate or add warmup_epochs; "
                    + (
                        "no step was saved before"
                        if kept is None
                        else f"the last good checkpoint, of step {kept}, is kept"
                    )
                )
