"""Who holds a run's directory: one holder at a time, on one host and across hosts.

A file names the holder. On its host it holds while its process lives. On another, where
neither locks nor clocks can be trusted, it holds while the file is seen to change: the
holder renews its time stamp (which harms nobody if it is another's by then), in an
object store its content.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator

import jax
from etils import epath

from vgg_flax import console, storage
from vgg_flax.errors import VGGFlaxError
from vgg_flax.parallel import distributed
from vgg_flax.runs.holder import Holder


class LeaseError(VGGFlaxError):
    """Another process holds what was to be written, or has taken it over."""


class Lease:
    """A lease, held within the context, in which a thread renews it.

    The processes of one run are one holder: the first takes it, and the others fail
    where it does.
    """

    def __init__(
        self,
        path: epath.Path,
        what: str,
        *,
        renew_seconds: float = 10.0,
        stale_seconds: float = 50.0,
    ):
        """Nothing is written before the context is entered.

        Args:
          path: of the file; its folder is made.
          what: is held, for messages: "--workdir=x".
          renew_seconds: between two renewals.
          stale_seconds: a holder on another host that is not seen to renew for so long,
            by the clock of who waits, has lost it.
        """
        self._path, self._what, self._is_local = path, what, storage.is_local(path)
        self._renew_seconds, self._stale_seconds = renew_seconds, stale_seconds
        self._look_seconds = renew_seconds / 10
        self._holder: Holder | None = None  # while it is held, in the first process
        self._done = threading.Event()
        # It must not keep a process alive that ends without leaving the context.
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        """Takes the lease; where that means to wait, it is told.

        Raises:
          LeaseError: another holds it, or it cannot be read or written.
        """
        distributed.by_first(self._take)
        if jax.process_index() == 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._holder is None:
            return
        self._done.set()
        self._thread.join()
        try:
            with _guard(self._path.parent):
                if self._is_ours(self._look()[1]):
                    self._path.unlink()
        except OSError as error:
            logging.warning("%s stays, as it cannot be removed: %s", self._path, error)

    def check(self) -> None:
        """Sees that it is still held; to be called before anything is written.

        Raises:
          LeaseError: it was lost while this process was suspended, or was removed.
        """
        if self._holder is None:
            return
        with self._readable():
            (content, _), now = self._look()
        if self._is_ours(now):
            return
        if content:
            raise LeaseError(
                f"{self._what} was taken over by {_named(now)}: this process had not "
                "been heard of for too long; it writes nothing more"
            )
        raise LeaseError(
            f"{self._path} has gone, by which this process held {self._what}; bring "
            "its folder back, or run the same command again, to go on"
        )

    def _take(self) -> None:
        mine = Holder.here()
        with self._readable():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                is_alone = self._write_when_free(mine)
                if not is_alone:  # two may have written: whose is there later?
                    time.sleep(self._look_seconds)
                self._holder = mine
                if self._is_ours(self._look()[1]):
                    return
                self._holder = None

    def _write_when_free(self, mine: Holder) -> bool:
        """Waits where needed; returns whether no other could write meanwhile."""
        watched, since = None, time.monotonic()
        while True:
            with _guard(self._path.parent) as is_alone:
                found, holder = self._look()
                lives = holder.lives() if holder else None
                waited = time.monotonic() - since
                is_stale = found == watched and waited >= self._stale_seconds
                if not found[0] or lives is False or (lives is None and is_stale):
                    self._write(mine)
                    return is_alone
            if lives or watched not in (None, found):
                raise LeaseError(
                    f"{self._what} is held by {_named(holder)}; wait for its end or "
                    "stop it, or name another. (In a copy of its folder, delete "
                    f"{self._path.name})"
                )
            if watched is None:
                watched = found
                console.say(
                    f"{self._what} is held by {_named(holder)}; waiting "
                    f"{self._stale_seconds:g} s for a sign of it"
                )
            time.sleep(self._look_seconds)

    def _renew(self) -> None:
        while not self._done.wait(self._renew_seconds):
            try:
                holder = self._look()[1]
                if holder is None:  # gone, or half written: `check` tells if it stays
                    continue
                if not self._is_ours(holder):
                    return  # as `check` will tell
                if self._is_local:
                    os.utime(self._path)
                else:
                    self._write(holder)
            except (OSError, LeaseError) as error:
                logging.warning("%s is not renewed: %s", self._path, error)

    def _look(self) -> tuple[tuple[bytes, int], Holder | None]:
        """The file's content (none: empty) and time stamp; and whom it names."""
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
            stamp = os.stat(self._path).st_mtime_ns if self._is_local else 0
        except FileNotFoundError:
            content, stamp = b"", 0
        return (content, stamp), Holder.read(content)

    def _write(self, holder: Holder) -> None:
        values = dataclasses.asdict(holder) | {"renewal": secrets.token_hex(4)}
        with storage.whole_file(self._path, LeaseError) as file:
            file.write_text(json.dumps(values))

    def _is_ours(self, holder: Holder | None) -> bool:
        ours = self._holder
        return holder is not None and ours is not None and holder.token == ours.token

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LeaseError(
                f"{self._path}, which says who holds {self._what}, cannot be read or "
                f"written: {error}; mend that, or name another"
            ) from error


def _named(holder: Holder | None) -> str:
    return str(holder or "somebody of whom its lease says nothing legible")


@contextlib.contextmanager
def _guard(folder: epath.Path) -> Iterator[bool]:
    """Lets one process at a time look and write, where locks are; says whether so.

    Held for a moment, and never by a dead process. Folders in NFS and in object stores
    have none.
    """
    if not storage.is_local(folder):
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            is_alone = True
        except OSError:
            is_alone = False
        yield is_alone
    finally:
        os.close(handle)
