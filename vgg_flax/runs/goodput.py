"""Productive step time over wall time."""

import datetime
import time

from vgg_flax import console
from vgg_flax.runs.events import Event


class Goodput:
    """Productive step time / wall time, over the run's whole life and since this start.

    Productive is the time between the ends of two training steps that follow each
    other, the wait for the batch included (on the host the two overlap). Everything
    else is not: starting, restoring and compiling, a start's first step (which fills
    the pipeline) and, in several processes, any that compiles, evaluations, the part of
    a save that blocks, tracing a profile. Nor are steps that were lost: a start from S
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
        self.began = console.timestamp(now)
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

    def compiles(self) -> None:
        """The next step compiles: its time is not productive, as that of the first."""
        self._step_end = None

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
