"""Opens files in a process of its own, with little memory, and tells what it cost.

`Opener` starts this module as a program, asks it for one file after the other, and
ends it where it takes too long.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import select
import subprocess
import sys
import time
import traceback
import warnings
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
MEMORY = 2 << 30  # bytes of addresses, above what it starts with
PEAK = 500e6  # bytes that a file of under 1 MB may take
_WALL_SECONDS = 30.0  # until it is said to hang


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of opening a file.

    Attributes:
      ended: "loaded", "refused", or "wrong".
      message: of the error, or what is wrong.
      seconds: of processor time, those of the process for HDF5 too.
      peak: bytes of memory in use at a time, above what there was before.
      steps: as of `MappedFile.steps`.
      share: of the steps that a file of its size may take.
    """

    ended: str
    message: str
    seconds: float = 0.0
    peak: int = 0
    steps: int = 0
    share: float = 0.0


class Opener:
    """The process that opens files."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def open(self, path: pathlib.Path) -> Outcome:
        """What comes of opening a file, or a run's folder."""
        process = self._running()
        assert process.stdin and process.stdout
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _WALL_SECONDS)
        line = process.stdout.readline() if ready else ""
        if line:
            outcome = Outcome(**json.loads(line))
            if outcome.peak > PEAK / 2:  # some of that may not come back
                self.close()
            return outcome
        why = "hangs" if not ready else "ends the process"
        self.close()
        return Outcome("wrong", why, _WALL_SECONDS)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.hostile.opening"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
            assert self._process.stdout
            assert self._process.stdout.readline() == "ready\n"
        return self._process


def main() -> None:
    """Answers until its input ends: a path a line, an outcome a line, as JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    import vgg_flax
    from vgg_flax import errors
    from vgg_flax.weights.containers import hdf5_file

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="PIL")  # Pillow tells of what it mends
    for name in ("state_dict_zip.pth", "ends_libhdf5.h5"):  # imports what there is
        with contextlib.suppress(errors.VGGFlaxError):
            vgg_flax.load(ROOT / "tests" / "files" / name)
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    size *= resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        path = pathlib.Path(line.rstrip("\n"))
        lister = hdf5_file.LISTER.process
        pids = ["self", *([] if lister is None else [str(lister.pid)])]
        before = {pid: _reset_peak(pid) for pid in pids}
        seconds = _seconds(pids)
        ended, message = _ended(path)
        spent = _seconds(pids) - seconds
        peak = sum(max(0, _peak(pid) - before[pid]) for pid in pids)
        outcome = Outcome(ended, message[:400], spent, peak, *_steps(path))
        print(json.dumps(dataclasses.asdict(outcome)), file=answers, flush=True)


def _ended(path: pathlib.Path) -> tuple[str, str]:
    """How opening a file ends, and why."""
    from vgg_flax import errors

    try:
        _open(path)
    except errors.VGGFlaxError as error:
        message = str(error)
        if not message.isprintable() or len(message) > 4000:
            return "wrong", f"no line: {message!r:.200}"
        if "MemoryError" in message or "Cannot allocate" in message:
            return "wrong", message
        return "refused", message
    except BaseException as error:  # whatever it is, it is none that is promised
        last = traceback.extract_tb(error.__traceback__)[-3:]
        where = "; ".join(f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in last)
        return "wrong", f"{type(error).__name__}: {error!s:.200} at {where}"
    return "loaded", ""


def _steps(path: pathlib.Path) -> tuple[int, float]:
    """Those of reading a weight file, and their share of its budget."""
    from vgg_flax import errors
    from vgg_flax.weights.containers import formats, mapped_file

    try:
        file = mapped_file.MappedFile(path)
    except errors.VGGFlaxError:  # a folder, or empty
        return 0, 0.0
    with contextlib.suppress(errors.VGGFlaxError):
        formats.read_file(file)
    return file.steps, file.steps / file.steps_limit


def _open(path: pathlib.Path) -> None:
    """As its name's suffix says; raises VGGFlaxError."""
    import vgg_flax
    from vgg_flax.data import table
    from vgg_flax.images import codec
    from vgg_flax.weights import WeightsError

    if table.is_table(path):
        found = table.read(path)
        found.class_names(found.splits()[:1], 1000)
    elif path.suffix in (".jpg", ".png", ".gif", ".bmp", ".webp", ".tiff"):
        codec.open_image(path, orientation="exif")
    else:
        try:
            vgg_flax.load(path)
        except WeightsError as error:
            if ": say " not in str(error):
                raise
            # Of a file that does not tell its pixels: it is told them.
            half: Any = (0.5,) * 3
            vgg_flax.load(path, mean=half, std=half, crop_size=64, test_scale=64)


def _reset_peak(pid: str) -> int:
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _peak(pid)


def _peak(pid: str) -> int:
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields.get("VmHWM", "0 kB").split()[0]) << 10


def _seconds(pids: list[str]) -> float:
    """Of processor time, by this process, its ended children, and `pids`."""
    total = time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    total += children.ru_utime + children.ru_stime
    for pid in pids[1:]:
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        except OSError:
            continue
        total += sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    main()
