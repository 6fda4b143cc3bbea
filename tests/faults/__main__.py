"""Breaks training runs in the ways that machines break them, and tells what came of it.

python -m tests.faults [FAULT ...] [--kills 20] [--terms 20] [--flips 20] [--others 3]
    [--seed 0] [--jobs 2] [--workdir DIR]

Real processes, signals and files. Prints a table, and exits with 1 if any run ended in
another way than it promises to; the seed and `outcomes.jsonl` in the workdir say which.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import random
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"  # here too: checkpoints are read back

import tabulate
import tqdm

from tests.faults import faults, runs


def main() -> int:
    """Strikes as often as the arguments say; returns the exit code."""
    arguments = _parse()
    folder = arguments.workdir or pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
    print(f"seed {arguments.seed}, in {folder}", flush=True)
    bench = runs.Bench(folder / "bench")
    for count in (1, 2):
        seconds = bench.undisturbed(count).seconds
        print(
            f"undisturbed in {count} process(es): {seconds:.1f} s after the first step"
        )

    names = [name for name, count in _counts(arguments).items() for _ in range(count)]
    rng = random.Random(arguments.seed)
    rng.shuffle(names)  # one that waits for a time-out runs beside one that computes
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        struck = [
            pool.submit(
                faults.strike, name, bench, folder / f"case{i}", rng.getrandbits(32)
            )
            for i, name in enumerate(names)
        ]
        done = concurrent.futures.as_completed(struck)
        for future in tqdm.tqdm(done, total=len(struck), unit="fault"):
            if future.exception():  # of the harness: it ends now, not after the rest
                pool.shutdown(wait=False, cancel_futures=True)
            outcome = future.result()
            outcomes.append(outcome)
            with (folder / "outcomes.jsonl").open("a") as stream:
                stream.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
            said = f"{outcome.fault} at {outcome.moment}: {outcome.ended}"
            tqdm.tqdm.write(f"{said}; {outcome.result}")
    print(_table(outcomes))
    return int(not all(outcome.is_right for outcome in outcomes))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    add = parser.add_argument
    add("faults", nargs="*", metavar="FAULT", help=f"only these of {[*faults.FAULTS]}")
    add("--kills", type=int, default=20, help="runs killed with kill -9")
    add("--terms", type=int, default=20, help="SIGTERMs; 2 in 5 to one of two")
    add("--flips", type=int, default=20, help="bits flipped in newest checkpoints")
    add("--others", type=int, default=3, help="of each other fault")
    add("--seed", type=int, default=0, help="of all that is random")
    add("--jobs", type=int, default=2, help="faults at a time")
    add("--workdir", type=pathlib.Path, help="a new folder; default: a temporary one")
    arguments = parser.parse_args()
    if unknown := set(arguments.faults) - set(faults.FAULTS):
        parser.error(f"no such fault: {sorted(unknown)}; known: {[*faults.FAULTS]}")
    return arguments


def _counts(arguments: argparse.Namespace) -> dict[str, int]:
    of_two = arguments.terms * 2 // 5
    counts = dict.fromkeys(faults.FAULTS, arguments.others) | {
        "kill -9": arguments.kills,
        "SIGTERM": arguments.terms - of_two,
        "SIGTERM to one of two": of_two,
        "a flipped bit": arguments.flips,
    }
    return {name: counts[name] for name in arguments.faults or counts}


def _table(outcomes: list[faults.Outcome]) -> str:
    rows = []
    for name in faults.FAULTS:
        chosen = [outcome for outcome in outcomes if outcome.fault == name]
        if not chosen:
            continue
        phases = [outcome.moment.split()[-1] for outcome in chosen if outcome.moment]
        rows.append(
            (
                name,
                len(chosen),
                _tally(phases),
                _tally([outcome.ended for outcome in chosen]),
                _tally([outcome.result[:70] for outcome in chosen]),
                max(outcome.seconds for outcome in chosen),
            )
        )
    headers = ("fault", "count", "struck while", "ended", "then", "worst s")
    return tabulate.tabulate(rows, headers, tablefmt="github", floatfmt=".1f")


def _tally(texts: list[str]) -> str:
    counted = collections.Counter(texts).most_common()
    return ", ".join(f"{count} {text}" for text, count in counted)


if __name__ == "__main__":
    sys.exit(main())
