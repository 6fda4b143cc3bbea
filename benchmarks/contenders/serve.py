"""What every contender is: a process that works when it is told to, and says how long.

Started as `python -m benchmarks.contenders.NAME SPEC`, SPEC in JSON. It prepares its
work and answers {"facts": {...}}; for every line of standard input, a number of
repetitions, it works and answers {"value": seconds, ...}. Answers are lines of JSON on
standard output; what libraries print there goes to standard error. Standard library
only: it runs in the peers' environments as well.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

# Repetitions -> None (they are timed from outside), a value, or a value and a note.
Run = Callable[[int], Any]


def serve(prepare: Callable[[dict[str, Any]], tuple[Run, dict[str, Any]]]) -> None:
    """Answers until standard input ends; `prepare(spec) -> (run, facts)`.

    `spec` says which `cores` to run on, and that these are so many `threads`.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    spec = json.loads(sys.argv[1])
    os.sched_setaffinity(0, spec["cores"])  # before pools of threads are made
    run, facts = prepare(spec)
    print(json.dumps({"facts": facts}), file=answers)
    for line in sys.stdin:
        start = time.perf_counter()
        out = run(int(line))
        seconds = time.perf_counter() - start
        value, note = out if isinstance(out, tuple) else (out, None)
        answer = {"value": seconds if value is None else value, "note": note}
        print(json.dumps(answer | {"peak_mib": peak_mib()}), file=answers)


def status_mib(field: str) -> float:
    """A field of this process's /proc/self/status, in MiB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(field)) / 1024


def peak_mib() -> float:
    """The largest resident memory that this process has had."""
    return status_mib("VmHWM")
