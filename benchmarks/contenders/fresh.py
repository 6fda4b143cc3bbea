"""Fresh processes: the seconds that one takes, or those till a run's first step.

Standard library only.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.contenders import serve

_LOOK_SECONDS = 0.01
_PATIENCE = 600.0  # seconds for a first step


def _seconds(spec: dict[str, Any]) -> float:
    """Of `python ARGUMENTS` from start to end."""
    begin = time.perf_counter()
    arguments = [sys.executable, *spec["arguments"]]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def _till_first_step(spec: dict[str, Any]) -> float:
    """Of `python train.py` until its log has the first step; it is ended then."""
    workdir = pathlib.Path(tempfile.mkdtemp(dir=spec["folder"]))
    arguments = [f"--workdir={workdir}", "--config.log_every_steps=1"]
    log = workdir / "metrics.jsonl"
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments], stdout=subprocess.DEVNULL
    )
    try:
        while not log.exists() or "\n" not in log.read_text():
            assert process.poll() is None, f"train.py: exit {process.returncode}"
            assert time.perf_counter() < begin + _PATIENCE, "no step yet"
            time.sleep(_LOOK_SECONDS)
        return time.perf_counter() - begin
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(workdir)


def _of_contender(spec: dict[str, Any]) -> tuple[float, Any]:
    """What another contender answers, in a process of its own: `answer` says which."""
    command = [sys.executable, "-m", f"benchmarks.contenders.{spec['module']}"]
    done = subprocess.run(
        [*command, json.dumps(spec)],
        input=f"{spec['repetitions']}\n",
        text=True,
        check=True,
        stdout=subprocess.PIPE,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer[spec["answer"]], answer["note"]


_WHATS = {
    "process": _seconds,
    "first step": _till_first_step,
    "contender": _of_contender,
}


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`: one of `_WHATS`, once before it counts if so "warmed"."""
    what = _WHATS[spec["what"]]
    if spec["warmed"]:
        what(spec)  # files in the page cache, programs in JAX's
    return lambda _: what(spec), {}


if __name__ == "__main__":
    serve.serve(prepare)
