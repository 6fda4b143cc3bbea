"""`python -m benchmarks NAME ...`: us beside others, in turn, in one run.

NAME is train, infer, uses, train_small, input, loop, evaluate, dense, startup, memory,
or all. Rows go to benchmarks/results/NAME.json as they are measured; those that are
there already, of the same sources, versions and machine, are kept, so that the same
command goes on after a stop. `report` renders benchmarks/README.md and its plot,
results/ratios.png. `compiling` and `accelerator` are for TPU programs and a GPU: they
print their tables.
"""

import argparse
import importlib
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks import environments, pairs, report, results, workers
from benchmarks.pairs import Row
from benchmarks.suites import inputs, processes, steps, within
from vgg_flax import errors

SUITES: dict[str, Callable[[], list[Row]]] = {
    "train": lambda: steps.rows("train"),
    "infer": lambda: steps.rows("infer"),
    "uses": steps.uses,
    "train_small": processes.train_small,
    "input": inputs.rows,
    "loop": within.loop,
    "evaluate": within.evaluate,
    "dense": within.dense,
    "startup": processes.startup,
    "memory": processes.memory,
}
_MARGIN = 5 * 60  # seconds before the end after which no row is begun


def parser() -> argparse.ArgumentParser:
    """Of `python -m benchmarks`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", choices=(*SUITES, "all", "report"), metavar="NAME")
    add("--row", default="", help="only rows whose name or peer has this in it")
    add("--pairs", type=int, default=5, help="default: 5; fewer show that it works")
    add("--seconds", type=float, default=2.0, help="a measurement, about; default: 2")
    add("--minutes", type=float, default=90.0, help="then rows are left for next time")
    add("--again", action="store_true", help="measure rows that are there already")
    add("--python", default="", help="interpreter of ours: another jax's (default: me)")
    for name in environments.NAMES:
        add(f"--{name}-python", default="", help=f"interpreter that has {name}")
    add("--results", type=pathlib.Path, default=results.FOLDER, help="where to")
    return parser


def measure(options: argparse.Namespace) -> int:
    """Measures what was asked for; 1 if a row failed or was left for next time."""
    names = list(SUITES) if options.name == "all" else [options.name]
    given = {name: getattr(options, f"{name}_python") for name in environments.NAMES}
    interpreters = environments.Interpreters({"ours": options.python, **given})
    end = time.monotonic() + 60 * options.minutes
    undone = 0
    with tempfile.TemporaryDirectory(prefix="vgg-flax-benchmarks-") as folder:
        session = workers.Session(interpreters, pathlib.Path(folder))
        for name in names:
            file = results.File(options.results / f"{name}.json")
            for row in SUITES[name]():
                if options.row in f"{row.name} {row.peer}":
                    undone += not _row(row, session, file, options, end)
    if undone:
        say(f"{undone} rows are not measured; the same command goes on")
    return min(1, undone)


def _row(
    row: Row,
    session: workers.Session,
    file: results.File,
    options: argparse.Namespace,
    end: float,
) -> bool:
    """Keeps or measures a row, and says so; whether it is there now."""
    what = f"{row.benchmark}: {row.name}" + f", over {row.peer}" * bool(row.peer)
    try:
        identity = results.identity(row, session, options.pairs, options.seconds)
        if not options.again and file.find(identity):
            say(f"{what}: kept")
            return True
        if time.monotonic() > end - _MARGIN:
            say(f"{what}: left for next time, as --minutes are over")
            return False
        before = results.circumstances()
        found = pairs.measure(row, session, options.pairs, options.seconds)
    except errors.VGGFlaxError as error:
        say(f"{what}: failed: {error}")
        return False
    load = {"load": [before["load"][0], results.circumstances()["load"][0]]}
    file.put({**identity, **before, **load, **found})
    say(f"{what}: {summary(row, found)}")
    return True


def summary(row: Row, found: dict[str, Any]) -> str:
    """A row's result in a line."""
    text = f"{found['ours']:.4g} {row.unit}"
    if not row.theirs:
        return text
    mode = f" ({found['mode']})" if "mode" in found else ""
    return (
        f"{found['ratio']:.3f} ({found['min']:.3f} to {found['max']:.3f}), {text} "
        f"against {found['theirs']:.4g}{mode}"
    )


def say(text: str) -> None:
    """Prints to stderr; `console.say` would start JAX's devices in this process."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """The command line; returns its exit code."""
    if sys.argv[1:2] in (["accelerator"], ["compiling"]):  # with options of their own
        importlib.import_module(f"benchmarks.{sys.argv.pop(1)}").main()
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the contenders
    options = parser().parse_args()
    try:
        if options.name == "report":
            where = options.results.resolve()
            default = where == results.FOLDER
            readme = (where.parent if default else where) / "README.md"
            report.write(where, readme)
            say(f"wrote {readme} and {where / 'ratios.png'}")
            return 0
        return measure(options)
    except errors.VGGFlaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
