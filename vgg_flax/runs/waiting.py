"""The time in which the devices have nothing to do, for want of the next batch."""

import concurrent.futures
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")

MUCH_WAITING = 0.1  # of the time of the steps: from then on it is told


class Waiting:
    """How long the devices waited for batches.

    While the devices are busy with a step the host draws the next batch; what counts is
    how long that goes on after the step has ended. A thread looks at the clock then, so
    that the loop need not wait for it.

    Attributes:
      seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._end: concurrent.futures.Future[float] | None = None  # of the last step

    def step_sent(self, outputs: Any) -> None:
        """A step has been sent, which gives `outputs`; they are not donated."""
        self._end = self._thread.submit(_end_of, outputs)

    def drawn(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, each of which is waited for here."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if self._end is not None and self._end.done():
                idle_since = max(start, self._end.result())
                self.seconds += max(0.0, time.perf_counter() - idle_since)
            yield batch


def _end_of(outputs: Any) -> float:
    jax.block_until_ready(outputs)
    return time.perf_counter()
