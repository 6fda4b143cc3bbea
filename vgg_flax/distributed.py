"""Several processes as one run: joining, agreeing on what is run and when to stop."""

import collections
import faulthandler
import functools
import hashlib
import itertools
import math
import os
import pathlib
import re
import signal
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from jax._src import clusters  # the only way to ask before initialising
from jax._src import distributed as distributed_state  # has its key-value store
from jax.experimental import multihost_utils

from vgg_flax.config import ConfigError, VGGFlaxError

# A process that dies is noticed after so many seconds (JAX's own default: 100) and
# the others end so many later (300).
_HEARTBEAT_SECONDS, _SHUTDOWN_SECONDS = 30, 60
_LOOK_SECONDS = 0.5  # how often processes that go apart look for each other's signals


class Interrupted(VGGFlaxError):
    """SIGINT or SIGTERM came, and what was done is saved.

    Attributes:
      exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def initialize(where: str) -> None:
    """Joins the processes of this job; call it before anything asks for devices.

    Args:
      where: "auto": as JAX detects it (Slurm, Cloud TPU, GKE, Open MPI), and nothing
        elsewhere; "off": nothing; "ADDRESS:PORT,COUNT,INDEX": process INDEX of COUNT,
        with process 0 listening at the address.

    Raises:
      ConfigError: `where` is none of these.
    """
    join = functools.partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    if where == "off":
        return
    if where == "auto":
        if _in_cluster():
            join()
        return
    parts = re.fullmatch(r"(.+:\d+),(\d+),(\d+)", where)
    if parts is None or int(parts[3]) >= int(parts[2]):
        raise ConfigError(
            f"--distributed={where}: expected auto, off, or ADDRESS:PORT,COUNT,INDEX "
            "with INDEX from 0 to COUNT - 1, such as host0:1234,2,0"
        )
    join(parts[1], int(parts[2]), int(parts[3]))


def code_digest() -> str:
    """A hash of this package's source: equal where the code is."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def check_devices() -> None:
    """Sees that all processes have as many devices, as an even share of a batch needs.

    Raises:
      ConfigError: in all processes, naming how many each of them has.
    """
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{n} in process {i}" for i, n in sorted(counts.items()))
        raise ConfigError(
            f"the processes have different numbers of devices: {listed}; give each as "
            "many"
        )


def check_same(facts: dict[str, Any]) -> None:
    """Sees that all processes run the same: a difference would hang or spoil the run.

    Args:
      facts: what must be equal everywhere, with equal keys everywhere; any values.

    Raises:
      ConfigError: in all processes, naming the facts and processes that differ.
    """
    if jax.process_count() == 1:
        return
    digests = [
        np.frombuffer(hashlib.sha256(repr(v).encode()).digest()[:8], np.uint8)
        for v in facts.values()
    ]
    gathered = multihost_utils.process_allgather(np.stack(digests))  # [P, facts, 8]
    differing = np.any(gathered != gathered[:1], axis=2)  # [P, facts]
    if not differing.any():
        return
    names = [n for n, wrong in zip(facts, differing.any(axis=0), strict=True) if wrong]
    processes = np.flatnonzero(differing.any(axis=1)).tolist()
    here = ", ".join(f"{name}={facts[name]!r}" for name in names)
    raise ConfigError(
        f"processes {processes} differ from process 0 in {', '.join(names)}; here, "
        f"process {jax.process_index()}: {here}. Start all with one command and code"
    )


def say(text: str) -> None:
    """Prints to stderr; of several processes the first does."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def wait_for_all(name: str) -> None:
    """Returns when all processes have called this with that name."""
    multihost_utils.sync_global_devices(name)


class Signals:
    """SIGINT and SIGTERM, noted; with several processes all hear of them at one step.

    In one process a handler notes them, and a second one of a kind acts as it always
    does. In several, JAX's coordinator tells all of them of a SIGTERM to any one and
    names the poll at which all stop; SIGINT is passed on as SIGTERM.

    Attributes:
      received: the signal noted in this process, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._polls = 0

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            handlers: dict[signal.Signals, Any] = {
                signal.SIGINT: self._note,
                signal.SIGTERM: self._note,
            }
            if jax.process_count() > 1:  # SIGTERM's handler is JAX's
                handlers = {signal.SIGINT: self._pass_on}
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
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
        signal.signal(number, self._previous[self.received])

    def _pass_on(self, number: int, _: object) -> None:
        signal.signal(number, self._previous[signal.Signals(number)])
        os.kill(os.getpid(), signal.SIGTERM)


class SignalsApart(Signals):
    """SIGINT and SIGTERM where each process goes at its own pace: all stop at once.

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
            for number in (signal.SIGINT, signal.SIGTERM):
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
        _coordinator().key_value_set(key, text, allow_overwrite=True)

    def _posted(self, board: str) -> list[tuple[str, str]]:
        return _coordinator().key_value_dir_get(f"{self._folder}/{board}/")


class Watchdog:
    """Ends this process if no step ends in time, when others may wait for ever.

    A process that is stuck keeps its heart beating, and the others wait for it in a
    collective. Alone, a process waits for nobody, and may be suspended at will.
    """

    def __init__(self, seconds: float | None):
        """Watches from the first step's end on; None: not at all."""
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


def _coordinator() -> Any:
    return distributed_state.global_state.client


def _in_cluster() -> bool:
    return any(
        kind.is_env_present()
        for kind in clusters.ClusterEnv._cluster_types
        if not kind.opt_in_only_method
    )
