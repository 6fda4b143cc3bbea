"""A process by name: such that no other is taken for it, and whether it still lives."""

import dataclasses
import json
import os
import pathlib
import secrets
import socket
import time

from vgg_flax import console


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds something, as a file names it.

    Attributes:
      host: its name.
      kernel: the host's boot and the name space that `pid` is of; "" where no /proc is.
      pid: its number.
      started: when, in ticks since the boot: numbers are used again. "" as above.
      since: when it took what it holds, ISO 8601, UTC; for people.
      token: random.
    """

    host: str
    kernel: str
    pid: int
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @classmethod
    def here(cls) -> "Holder":
        """This process, from now on."""
        host, pid, now = socket.gethostname(), os.getpid(), time.time()
        token = secrets.token_hex(8)
        return cls(host, _kernel(), pid, _stat(pid)[1], console.timestamp(now), token)

    @classmethod
    def read(cls, data: bytes) -> "Holder | None":
        """Of a file's content, JSON with the attributes; None if it is damaged."""
        try:
            values = json.loads(data)
            holder = cls(**{name: values[name] for name in _FIELDS})
        except (ValueError, LookupError, TypeError):
            return None
        texts = (values[name] for name in _FIELDS if name != "pid")
        fits = isinstance(holder.pid, int) and all(isinstance(x, str) for x in texts)
        return holder if fits and 0 < holder.pid < 2**31 else None

    def lives(self) -> bool | None:
        """Whether the process is there; None: that cannot be told from here."""
        if (self.host, self.kernel) != (socket.gethostname(), _kernel()):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another person's
            pass
        state, started = _stat(self.pid)
        return state not in ("Z", "X") and started in (self.started, "")


_FIELDS = tuple(field.name for field in dataclasses.fields(Holder))


def _kernel() -> str:
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """A process's state and start; empty where there is no /proc, or not for us."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # a program's name may hold anything
    return fields[0], fields[19]
