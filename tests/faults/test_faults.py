"""Runs that are broken at random moments end at the same bits, or say why not."""

import pytest
from conftest import ORBAX_LEAVES_COROUTINES

from tests.faults import faults, runs

pytestmark = [*ORBAX_LEAVES_COROUTINES, pytest.mark.slow]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> runs.Bench:
    """The undisturbed run that all are compared with, and what it ran on."""
    return runs.Bench(tmp_path_factory.mktemp("faults") / "bench")


# Those that nothing else tests; `python -m tests.faults` has the rest, and more of all.
@pytest.mark.parametrize(
    "fault",
    [
        "a flipped bit",
        "disk full",
        "workdir gone",
        "one of two raises",
        "one of two stopped",
        "two starts at once",
    ],
)
def test_a_run_ends_at_the_same_bits_or_says_why_not(
    fault: str, bench: runs.Bench
) -> None:
    folder = bench.folder.parent / fault.replace(" ", "_")
    outcome = faults.strike(fault, bench, folder, seed=1)
    assert outcome.is_right, outcome
