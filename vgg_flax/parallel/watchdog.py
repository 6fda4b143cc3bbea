"""Ends a process that is stuck while others wait for it."""

import faulthandler


class Watchdog:
    """Ends this process if no step ends in time, when others may wait for ever.

    A process that is stuck keeps its heart beating, and the others wait for it in a
    collective. Alone, a process waits for nobody, and may be suspended at will.
    """

    def __init__(self, seconds: float | None):
        """Watches from a step's end to the next's, or to `rest`; None: not at all."""
        self._seconds = seconds

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def step_ended(self) -> None:
        """Grants the next step its time; past it: all threads' tracebacks, exit 1."""
        if self._seconds is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    def rest(self) -> None:
        """No step is due."""
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()
