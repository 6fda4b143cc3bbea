"""Some of each fault of `python -m tests.faults`, at moments of a fixed seed."""

import gc
from collections.abc import Iterator

import pytest

from tests.faults import faults, runs

# Orbax leaves coroutines of failed reads behind; Python reports their end when it
# collects them, which is made to happen here and not in another file's test.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> runs.Bench:
    """The undisturbed run that all are compared with, and what it ran on."""
    return runs.Bench(tmp_path_factory.mktemp("faults") / "bench")


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_a_run_ends_at_the_same_bits_or_says_why_not(
    fault: str, bench: runs.Bench
) -> None:
    folder = bench.folder.parent / fault.replace(" ", "_")
    outcome = faults.strike(fault, bench, folder, seed=1)
    assert outcome.is_right, outcome
