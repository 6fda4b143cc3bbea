"""What is told on a terminal: lines, bars, times."""

import datetime
import sys

import jax
import tqdm


def format_time(seconds: float) -> str:
    """Seconds as people say them: "45 s", "12 min", "3.4 h", "2.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def bar(total: int, unit: str, initial: int = 0, *, active: bool = True) -> tqdm.tqdm:
    """A progress bar on stderr, which `update(n)` moves on; none off a terminal."""
    return tqdm.tqdm(
        total=total,
        initial=initial,
        unit=unit,
        dynamic_ncols=True,
        disable=None if active else True,
    )


def timestamp(seconds: float) -> str:
    """Seconds since 1970 in ISO 8601, UTC, to the millisecond."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")


def say(text: str) -> None:
    """Prints to stderr; of several processes the first does."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr)
