"""A process that takes, checks and releases a lease as it is told on standard input."""

import os
import pathlib
import sys
from typing import Any

from etils import epath

from vgg_flax.errors import VGGFlaxError
from vgg_flax.runs.lease import Lease


@epath.register_path_cls("objects://")
class Objects:
    """A path in an object store that processes share: without locks and time stamps."""

    def __init__(self, path: str):
        self._path = path
        self._file = pathlib.Path(path.removeprefix("objects:/"))

    def __str__(self) -> str:
        return self._path

    def __fspath__(self) -> str:
        return self._path

    def joinpath(self, *names: str) -> "Objects":
        return Objects("/".join([self._path, *names]))

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def parent(self) -> "Objects":
        return Objects(self._path.rpartition("/")[0])

    def exists(self) -> bool:
        return self._file.exists()

    def mkdir(self, **_: Any) -> None:
        pass

    def read_bytes(self) -> bytes:
        return self._file.read_bytes()

    def open(self, mode: str) -> Any:
        assert mode == "wb", "an object is written as a whole"
        return _Upload(self._file)

    def unlink(self) -> None:
        self._file.unlink()


class _Upload:
    def __init__(self, file: pathlib.Path):
        self._file = file

    def __enter__(self) -> "_Upload":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: bytes) -> None:
        aside = self._file.with_name(f"upload.{os.getpid()}")
        aside.write_bytes(data)
        aside.replace(self._file)


def main() -> None:
    """`take PATH RENEW_SECONDS STALE_SECONDS`, `check`, `release`, a line each."""
    lease = None
    for line in sys.stdin:
        order, *arguments = line.split()
        try:
            if order == "take":
                path, renew, stale = arguments
                lease = Lease(
                    epath.Path(path),
                    "--workdir=run",
                    renew_seconds=float(renew),
                    stale_seconds=float(stale),
                ).__enter__()
            elif order == "check" and lease:
                lease.check()
            elif lease:
                lease.__exit__()
            print("done", flush=True)
        except VGGFlaxError as error:
            print(f"error: {error}", flush=True)


if __name__ == "__main__":
    main()
