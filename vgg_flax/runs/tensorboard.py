"""TensorBoard's file of events, without its thread."""

import socket
import time
from typing import Any

from etils import epath


class Board:
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
