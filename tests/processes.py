"""`train.py` and `vgg-flax` as real processes: started, waited for, read back."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vgg_flax import config as config_lib
from vgg_flax.runs import checkpoint

ROOT = pathlib.Path(__file__).parent.parent

Process = subprocess.Popen[str]


class Ended(NamedTuple):
    """How a process ended: its exit code (negative: by that signal), what it said."""

    code: int
    out: str
    err: str


def start(
    workdir: pathlib.Path,
    arguments: Sequence[Sequence[str]],
    *,
    devices: int | Sequence[int] = 2,
    environment: Mapping[str, str] | None = None,
    folders: Sequence[pathlib.Path] | None = None,
) -> list[Process]:
    """Starts `python train.py --workdir=WORKDIR` once for each list of arguments.

    Args:
      workdir: of all of them.
      arguments: more arguments, of each process.
      devices: CPU devices, of each process or of all together.
      environment: variables to set besides.
      folders: each process's working directory.
    """
    command = [str(ROOT / "train.py"), f"--workdir={workdir}"]
    return start_python(
        [[*command, *more] for more in arguments],
        devices=devices,
        environment=environment,
        folders=folders,
    )


def start_python(
    arguments: Sequence[Sequence[str]],
    *,
    devices: int | Sequence[int],
    environment: Mapping[str, str] | None = None,
    folders: Sequence[pathlib.Path] | None = None,
) -> list[Process]:
    """Starts `python` with each of the arguments, and `--distributed=` if several."""
    count = len(arguments)
    if isinstance(devices, int):
        devices = [devices // count] * count
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return [
        subprocess.Popen(
            [
                *(sys.executable, *one),
                *([f"--distributed={address},{count},{i}"] if count > 1 else []),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices[i]),
                **(environment or {}),
            },
            cwd=folders[i] if folders else None,
        )
        for i, one in enumerate(arguments)
    ]


def finish(process: Process, seconds: float = 240) -> Ended:
    """Waits for its end, so long at most; raises subprocess.TimeoutExpired."""
    out, err = process.communicate(timeout=seconds)
    return Ended(process.returncode, out, err)


def suspend(process: Process) -> None:
    """SIGSTOP; returns when none of its threads runs, in the kernel neither."""
    process.send_signal(signal.SIGSTOP)
    tasks = pathlib.Path(f"/proc/{process.pid}/task")
    # "PID (NAME) STATE ...", and a name may hold anything.
    while any(
        path.read_text().rpartition(")")[2].split()[0] not in "TZ"
        for path in tasks.glob("*/stat")
    ):
        time.sleep(0.001)


@contextlib.contextmanager
def killed_at_the_end(processes: list[Process]) -> Iterator[list[Process]]:
    """None of the processes is left behind, whatever happens within."""
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for(
    processes: list[Process], condition: Callable[[], bool], seconds: float = 300
) -> None:
    """Waits until `condition()`, while all the processes run, so long at most."""
    end = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < end
        time.sleep(0.02)


def write_recipe(recipe: config_lib.Config, path: pathlib.Path) -> str:
    """Writes `recipe` as a file for `--config`; returns that argument.

    The process knows tests/shallow.py's nets, too.
    """
    values = config_lib.to_json(recipe)
    path.write_text(
        "import json\nfrom tests import shallow\nfrom vgg_flax import config, model\n"
        "\n\ndef get_config():\n    model.VARIANTS.update(shallow.NETS)\n"
        f"    return config.from_dict(json.loads({values!r}))\n"
    )
    return f"--config={path}"


def finished_steps(workdir: pathlib.Path) -> list[int]:
    """The steps whose checkpoints are whole, oldest first."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def crcs(workdir: pathlib.Path, step: int) -> dict[str, int]:
    """The crc32 of every leaf of the state, of the arrays as read back."""
    with checkpoint.Checkpoints(workdir / "checkpoints", keep=100) as checkpoints:
        leaves = checkpoints.read(step).leaves
    return {path: zlib.crc32(np.ascontiguousarray(x)) for path, x in leaves.items()}
