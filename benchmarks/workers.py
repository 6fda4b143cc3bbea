"""The parent's side of a contender: started, asked in turn with others, and ended."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks import environments
from vgg_flax import errors

ROOT = pathlib.Path(__file__).parent.parent


class ContenderError(errors.VGGFlaxError):
    """A contender ended by itself; its last words say why."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """Who does a row's work.

    Attributes:
      label: as results name it: "channels-last".
      environment: a key of `environments.REQUIREMENTS`, or "ours".
      module: of `benchmarks.contenders`.
      spec: what to do; the values of "weights", "photos" and "digits" are what the
        functions take that write them, and become paths.
      cores: how many it may use; 0: all there are.
    """

    label: str
    environment: str
    module: str
    spec: dict[str, Any]
    cores: int = 0


class Worker:
    """A running contender; called with a number of repetitions, it returns a value.

    Between calls it is stopped with all that it started, so that what works ahead in
    one (decoding, say) neither takes time from the other nor comes for nothing.
    """

    def __init__(self, command: list[str], threads: int, errors_to: pathlib.Path):
        self.notes: list[Any] = []
        self.peak_mib = 0.0
        self._errors_to = errors_to
        with errors_to.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env=_environment(threads),
                # Of its own: Ctrl-C is for the parent, which ends it. In the same
                # session: should the parent be killed, the kernel ends a stopped one.
                process_group=0,
            )
        self.facts: dict[str, Any] = {}

    def begin(self) -> None:
        """Waits until the work is prepared."""
        self.facts = self._answer()["facts"]
        self._stop()

    def __call__(self, repetitions: int) -> float:
        """The value of so many repetitions: seconds, if the contender says no other."""
        assert self._process.stdin is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # its last words are read below
            self._process.stdin.write(f"{repetitions}\n")
            self._process.stdin.flush()
        answer = self._answer()
        self._stop()
        self.peak_mib = answer["peak_mib"]
        if answer["note"] is not None:
            self.notes.append(answer["note"])
        return answer["value"]

    def end(self) -> None:
        """Ends it with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _stop(self) -> None:
        """Returns when it is stopped, or has ended."""
        pid = self._process.pid
        os.killpg(pid, signal.SIGSTOP)
        state = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if state is not None and state.si_code == os.CLD_STOPPED:
            os.waitid(os.P_PID, pid, os.WSTOPPED)  # the next stop is another

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        said = self._errors_to.read_text(errors="replace").strip().splitlines()
        words = " ".join(self._process.args[-2:])  # pyright: ignore
        raise ContenderError(
            f"{words[:200]}: exit {code}: {' | '.join(said[-3:])[-600:]}"
        )


def _environment(threads: int) -> dict[str, str]:
    """Of a contender: the same number of threads for all, on CPU, without own flags."""
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return kept | counts | quiet | {"PYTHONPATH": path}


class Session:
    """What the rows of one call share: interpreters, cores, files made once."""

    def __init__(self, interpreters: environments.Interpreters, folder: pathlib.Path):
        self.interpreters, self.folder = interpreters, folder
        self.cores = sorted(os.sched_getaffinity(0))

    @contextlib.contextmanager
    def worker(self, contender: Contender) -> Iterator[Worker]:
        """A contender, prepared; ended at the end."""
        spec = self._with_files(contender.spec)
        cores = self.cores[: contender.cores or None]
        python = self.interpreters.path(contender.environment)
        spec |= {"folder": str(self.folder), "threads": len(cores), "cores": cores}
        command = [python, "-m", f"benchmarks.contenders.{contender.module}"]
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".stderr") as file:
            words = [*command, json.dumps(spec)]
            worker = Worker(words, len(cores), pathlib.Path(file.name))
            try:
                worker.begin()
                yield worker
            finally:
                worker.end()

    def _with_files(self, spec: dict[str, Any]) -> dict[str, Any]:
        """`spec` with paths for what it says of files, which are written once."""
        if not spec.keys() & {"weights", "photos", "digits"}:
            return dict(spec)
        from benchmarks import photos, weight_files  # these import JAX

        writers = {
            "weights": weight_files.write,
            "photos": photos.write,
            "digits": photos.write_digits,
        }
        asked = {key: writers[key] for key in writers if key in spec}
        return spec | {k: str(f(self.folder, **spec[k])) for k, f in asked.items()}
