"""SIGINT, SIGTERM and SIGHUP, noted, and heard of by all processes."""

import itertools
import math
import os
import signal
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from vgg_flax.parallel import distributed

_LOOK_SECONDS = 0.5  # how often processes that go apart look for each other's signals


class Signals:
    """Signals to stop, noted; with several processes all hear of them at one step.

    In one process a handler notes them, and a second one of a kind acts as it always
    does, but for SIGHUP: a terminal that closes sends it more than once. In several,
    JAX's coordinator tells all of them of a SIGTERM to any one and names the poll at
    which all stop; the others are passed on as SIGTERM.

    Attributes:
      received: the signal noted in this process, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._polls = 0

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            several = jax.process_count() > 1
            for number in _to_hear():
                if not several:
                    self._previous[number] = signal.signal(number, self._note)
                elif number != signal.SIGTERM:  # whose handler is JAX's
                    self._previous[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def poll(self) -> signal.Signals | None:
        """The signal to stop for now, if any.

        Call it after each training step and each evaluation batch, in all processes
        equally often: they stop at the same call.
        """
        if jax.process_count() == 1:
            return self.received
        self._polls += 1
        if multihost_utils.reached_preemption_sync_point(self._polls):
            return signal.SIGTERM
        return None

    def _note(self, number: int, _: object) -> None:
        self.received = signal.Signals(number)
        self._restore(self.received)

    def _pass_on(self, number: int, _: object) -> None:
        self._restore(signal.Signals(number))
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self, number: signal.Signals) -> None:
        again = signal.SIG_IGN if number == signal.SIGHUP else self._previous[number]
        signal.signal(number, again)


class SignalsApart(Signals):
    """Signals to stop where each process goes at its own pace: all stop at once.

    Who gets one posts it, and the others find it at their next poll, however often
    each has polled. With several processes all of them make one of these equally often.
    """

    _made = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self._folder = f"vgg_flax/signals_apart/{next(self._made)}"
        self._looked = -math.inf

    def __enter__(self) -> "SignalsApart":
        if threading.current_thread() is threading.main_thread():
            for number in _to_hear():
                self._previous[number] = signal.signal(number, self._note)
        return self

    def poll(self) -> signal.Signals | None:
        """The signal to stop for now, if any process has got one."""
        if jax.process_count() == 1:
            return self.received
        if self.received is not None:
            self._post("received", self.received.name)
        elif time.monotonic() > self._looked + _LOOK_SECONDS:
            self._looked = time.monotonic()
            for _, name in self._posted("received"):
                self.received = signal.Signals[name]
        return self.received

    def all_done(self) -> bool:
        """Says that this process is done; returns whether all have said so."""
        if jax.process_count() == 1:
            return True
        self._post("done", "")
        return len(self._posted("done")) == jax.process_count()

    def _post(self, board: str, text: str) -> None:
        key = f"{self._folder}/{board}/{jax.process_index()}"
        distributed.coordinator().key_value_set(key, text, allow_overwrite=True)

    def _posted(self, board: str) -> list[tuple[str, str]]:
        return distributed.coordinator().key_value_dir_get(f"{self._folder}/{board}/")


def _to_hear() -> list[signal.Signals]:
    """All three, but for a SIGHUP that is ignored, as `nohup` has it."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers
