"""What happened to a run: `WORKDIR/events.jsonl`, and its goodput.

A line is a JSON object with `time` (ISO 8601, UTC), `event`, `step` (updates made) and
what belongs to the event:

| event | more of it |
|---|---|
| `start` | `began`, `versions`, `code`, `devices`, `device_kind`, `processes` |
| `damaged` | a checkpoint was moved to `damaged/`: its `step`, `reason` |
| `resumed` | from the checkpoint of `step` |
| `compiled` | `seconds`; in several processes those of the first step, too |
| `evaluation_started`, `evaluation_finished` | `split`; `seconds`, `top1` |
| `save_started`, `save_finished` | of `step`; `productive_seconds` up to it |
| `profiled` | `first_step`, `last_step` |
| `stopped` | `signal`, goodput: after saving |
| `error` | `type`, `message` |
| `complete` | goodput |

A start that no `stopped`, `error` or `complete` follows was killed. A save is known to
be finished at the first step after it that looks.
"""

import datetime
import logging
import time
from types import TracebackType
from typing import Any

from etils import epath

from vgg_flax import run_directory
from vgg_flax.distributed import Interrupted

Event = dict[str, Any]


class Events:
    """The file, in the process that is to write it; elsewhere nothing.

    As a context it records the error that ends it. Events that cannot be written are
    logged and lost: whatever keeps them out is about to stop the run with an error of
    its own, which is the one to show.

    Attributes:
      past: the events of earlier starts, oldest first.
      step: updates made, as each event is to say.
    """

    def __init__(self, workdir: epath.Path, *, active: bool):
        path = workdir / "events.jsonl"
        self.step = 0
        self.past = run_directory.read_records(path) if active else []
        self._file = run_directory.RecordFile(path, self.past) if active else None

    def __enter__(self) -> "Events":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        if kind is not None and not isinstance(error, Interrupted):
            self.write("error", type=kind.__name__, message=str(error)[:1000])

    def write(self, event: str, **facts: Any) -> None:
        """Adds a line; a `step` among the facts counts instead of the run's."""
        if self._file is None:
            return
        now = _iso(time.time())
        try:
            self._file.append({"time": now, "event": event, "step": self.step} | facts)
        except run_directory.RunDirectoryError as error:
            logging.error("event %s is not recorded: %s", event, error)


class Goodput:
    """Productive step time / wall time, over the run's whole life and since this start.

    Productive is the time between the ends of two training steps that follow each
    other, the wait for the batch included (on the host the two overlap). Everything
    else is not: starting, restoring and compiling, a start's first step (which fills
    the pipeline, and in several processes compiles), evaluations, the part of a save
    that blocks, tracing a profile. Nor are steps that were lost: a start from step S
    takes over the seconds that the save of S wrote down, so that what a killed run did
    after S drops out, and counts when it is made again.

    Wall time runs, since this start, from the call of `train_and_evaluate`; over the
    life from that of the first start in `events.jsonl`, the time between starts (in a
    queue, say) included. What precedes the call, imports and the joining of processes,
    counts from the second start on. A run whose file does not know the save it resumes
    from begins at zero: a figure too low rather than too high. What this start's own
    figure counts may still be lost with it.

    Attributes:
      began: when this start was, ISO 8601, UTC.
    """

    def __init__(self) -> None:
        """Starts this start's wall clock."""
        now = time.time()
        self.began = _iso(now)
        self._start, self._first_start = time.perf_counter(), now
        self._now_at_start = now
        self._before = self._here = 0.0  # productive seconds
        self._step_end: float | None = None

    def resume(self, past: list[Event], step: int) -> None:
        """Takes over what earlier starts did up to `step`, by their events."""
        starts = [event for event in past if event["event"] == "start"]
        if starts:
            first = datetime.datetime.fromisoformat(starts[0]["began"])
            self._first_start = min(self._now_at_start, first.timestamp())
        saves = [
            event["productive_seconds"]
            for event in past
            if event["event"] == "save_started" and event["step"] == step
        ]
        self._before = saves[-1] if saves else 0.0

    def step_ended(self) -> None:
        """A training step has ended."""
        now = time.perf_counter()
        if self._step_end is not None:
            self._here += now - self._step_end
        self._step_end = now

    def rest(self) -> None:
        """What was done since the last step's end is not productive."""
        if self._step_end is not None:
            self._step_end = time.perf_counter()

    @property
    def productive_seconds(self) -> float:
        """Over the run's life, up to the step that ended last."""
        return round(self._before + self._here, 3)

    def facts(self) -> dict[str, float]:
        """`goodput`, `goodput_since_start`, and the seconds that they are made of."""
        here = time.perf_counter() - self._start
        life = here + self._now_at_start - self._first_start
        return {
            "goodput": round((self._before + self._here) / life, 4),
            "goodput_since_start": round(self._here / here, 4),
            "productive_seconds": self.productive_seconds,
            "wall_seconds": round(life, 3),
        }

    def line(self) -> str:
        """The figures as a line for people."""
        facts = self.facts()
        return (
            f"goodput {facts['goodput']:.1%} since the run's first start "
            f"({facts['productive_seconds']:,.1f} s of steps in "
            f"{facts['wall_seconds']:,.1f} s), "
            f"{facts['goodput_since_start']:.1%} since this one"
        )


def _iso(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")
