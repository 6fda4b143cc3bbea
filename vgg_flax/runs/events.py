"""What happened to a run: `WORKDIR/events.jsonl`, and its goodput.

A line is a JSON object with `time` (ISO 8601, UTC), `event`, `step` (updates made) and
what belongs to the event:

| event | more of it |
|---|---|
| `start` | `began`, `versions`, `code`, `devices`, `device_kind`, `processes` |
| `damaged` | a checkpoint was moved to `damaged/`: its `step`, `reason` |
| `resumed` | from the checkpoint of `step` |
| `compiled` | `seconds`; in several processes those of the first step, too |
| `evaluation_started`, `evaluation_finished` | `split`; `seconds`, what decides |
| `save_started`, `save_finished` | of `step`; `productive_seconds` up to it |
| `profiled` | `first_step`, `last_step` |
| `stopped` | `signal`, goodput: after saving |
| `error` | `type`, `message` |
| `complete` | goodput |

A start that no `stopped`, `error` or `complete` follows was killed. A save is known to
be finished at the first step after it that looks.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from etils import epath

from vgg_flax import console, storage
from vgg_flax.errors import Interrupted
from vgg_flax.runs.lease import LeaseError

Event = dict[str, Any]


@dataclasses.dataclass
class Position:
    """Where a run stands: one object, of which all that tell of it know.

    Attributes:
      step: updates made.
      validated: whether the validation due at that step was made.
    """

    step: int = 0
    validated: bool = True


class Events:
    """The file, in the process that is to write it; elsewhere nothing.

    As a context it records the error that ends it. Events that cannot be written are
    logged and lost: whatever keeps them out is about to stop the run with an error of
    its own, which is the one to show.

    Attributes:
      past: the events of earlier starts, oldest first.
    """

    def __init__(
        self,
        workdir: epath.Path,
        position: Position,
        *,
        active: bool,
        check: Callable[[], None] = lambda: None,
    ):
        """Opens the file; each event says the `position`'s step.

        Before one is written `check` is called: `Lease.check`.
        """
        path = workdir / "events.jsonl"
        self._position, self._check = position, check
        self.past = storage.read_records(path) if active else []
        self._file = storage.RecordFile(path, self.past) if active else None

    def __enter__(self) -> "Events":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        if kind is None or isinstance(error, (Interrupted, LeaseError)):
            return
        try:
            self.write("error", type=kind.__name__, message=str(error)[:1000])
        except LeaseError as lost:  # it must not hide what has happened first
            console.say(str(lost))

    def check(self) -> None:
        """Raises LeaseError where the run's directory is another's by now."""
        self._check()

    def write(self, event: str, **facts: Any) -> None:
        """Adds a line; a `step` among the facts counts instead of the position's.

        Raises:
          LeaseError: the run's directory is another's by now.
        """
        if self._file is None:
            return
        self._check()
        now, step = console.timestamp(time.time()), self._position.step
        try:
            self._file.append({"time": now, "event": event, "step": step} | facts)
        except storage.RunDirectoryError as error:
            logging.error("event %s is not recorded: %s", event, error)
