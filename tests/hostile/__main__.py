"""Opens damaged and crafted files of each format, and tells what came of it.

python -m tests.hostile [FORMAT ...] [--count 300] [--seed 0] [--jobs 2]

Prints a table, and exits with 1 if a file ended otherwise than whole or in one line of
an error, or one of under 1 MB took more than 500 MB of memory. How long the worst took
is told, and no more: machines differ.
"""

import argparse
import concurrent.futures
import os
import pathlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # here too: sound files are written

import tabulate

from tests.hostile import crafted, mutants, opening


class Case(NamedTuple):
    """A file that was opened, and what came of it."""

    name: str
    size: int
    outcome: opening.Outcome

    @property
    def is_right(self) -> bool:
        """Whether it ended as all must."""
        is_small = self.size < 1e6
        is_cheap = self.outcome.peak < opening.PEAK or not is_small
        return self.outcome.ended != "wrong" and is_cheap


def main() -> int:
    """Opens as many as the arguments say; returns the exit code."""
    arguments = _parse()
    rows, wrong = [], []
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        for file_format in arguments.formats or FORMATS:
            for kind in ("damaged", "crafted"):
                place = pathlib.Path(folder) / file_format / kind
                files = cases(file_format, kind, arguments.count, arguments.seed, place)
                done = open_all(files, arguments.jobs)
                if done:
                    rows.append((file_format, kind, *_row(done)))
                    print(*rows[-1], flush=True)
                for case in done:
                    if not case.is_right:
                        wrong.append(case)
                        print(f"{file_format}, {case.name}: {case.outcome}", flush=True)
    headers = ("format", "files", "cases", "whole", "refused", "wrong")
    costs = ("worst s", "its file", "worst MB", "worst steps, k", "% of budget")
    print(tabulate.tabulate(rows, (*headers, *costs), "github", floatfmt=".2f"))
    return int(bool(wrong))


FORMATS = tuple(mutants.SOUND)


def cases(
    file_format: str, kind: str, count: int, seed: int, folder: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path]]:
    """The files of a format: names and paths, made one at a time."""
    if kind == "damaged":
        yield from mutants.mutants(file_format, count, seed, folder)
        return
    for i, (name, make) in enumerate(crafted.CRAFTED.get(file_format, {}).items()):
        path = folder / str(i) / crafted.NAMES.get(file_format, "x.bin")
        path.parent.mkdir(parents=True)
        path.write_bytes(make())
        yield name, path


def open_all(files: Iterator[tuple[str, pathlib.Path]], jobs: int) -> list[Case]:
    """Opens files in as many processes; each is removed when it was."""
    lock, openers = threading.Lock(), [opening.Opener() for _ in range(jobs)]

    def work(opener: opening.Opener) -> list[Case]:
        found = []
        while True:
            with lock:
                name, path = next(files, ("", None))
            if path is None:
                opener.close()
                return found
            size = path.stat().st_size
            found.append(Case(name, size, opener.open(path)))
            shutil.rmtree(path.parent)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return [case for part in pool.map(work, openers) for case in part]


def _row(done: list[Case]) -> tuple[object, ...]:
    ended = [case.outcome.ended for case in done]
    slowest = max(done, key=lambda case: case.outcome.seconds)
    return (
        len(done),
        *(ended.count(kind) for kind in ("loaded", "refused", "wrong")),
        slowest.outcome.seconds,
        slowest.name,
        max(case.outcome.peak for case in done) / 1e6,
        max(case.outcome.steps for case in done) / 1e3,
        100 * max(case.outcome.share for case in done),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile")
    add = parser.add_argument
    add("formats", nargs="*", metavar="FORMAT", help=f"only these of {[*FORMATS]}")
    add("--count", type=int, default=300, help="damaged files of each")
    add("--seed", type=int, default=0, help="of the damage")
    add("--jobs", type=int, default=2, help="processes that open files")
    arguments = parser.parse_args()
    if unknown := set(arguments.formats) - set(FORMATS):
        parser.error(f"no such format: {sorted(unknown)}; known: {[*FORMATS]}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
