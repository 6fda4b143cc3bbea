"""One holder at a time: live, killed, suspended and on another host; real processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from etils import epath

from tests import processes
from vgg_flax.runs.lease import Lease, LeaseError

RENEW, STALE = 0.1, 1.0


class Worker:
    """A process of `holding`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.runs.holding"],
            cwd=processes.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(processes.ROOT)},
        )
        self.pid = self._process.pid

    def order(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def does(self, line: str) -> str:
        self.order(line)
        return self.answer()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def die(self) -> None:
        """As by the kernel's hand; it stays a zombie, as nobody waits for it."""
        self.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def worker() -> Iterator[Callable[[], Worker]]:
    """Starts workers; none outlives the test."""
    started: list[Worker] = []

    def start() -> Worker:
        started.append(Worker())
        return started[-1]

    yield start
    for one in started:
        one.end()


def take(path: object, stale: float = STALE) -> str:
    return f"take {path} {RENEW} {stale}"


def move_to_another_host(path: pathlib.Path) -> None:
    """The lease as a holder on another host would have written it."""
    values = {**json.loads(path.read_text()), "host": "elsewhere"}
    whole = path.with_name("elsewhere.json")  # who renews reads it at any time
    whole.write_text(json.dumps(values))
    whole.replace(path)


def test_of_starts_at_once_one_holds_and_a_killed_one_blocks_nobody(
    worker: Callable[[], Worker], tmp_path: pathlib.Path
) -> None:
    path, workers = tmp_path / "lease.json", [worker() for _ in range(3)]
    for _ in range(20):
        for one in workers:
            one.order(take(path))
        answers = [one.answer() for one in workers]
        assert sorted(a.split(":")[0] for a in answers) == ["done", "error", "error"]
        holder = workers[answers.index("done")]
        said = next(answer for answer in answers if answer != "done")
        assert f"--workdir=run is held by process {holder.pid} on " in said
        assert holder.does("release") == "done"
        assert list(tmp_path.iterdir()) == []
    first, second, third = workers
    assert first.does(take(path)) == "done"
    first.die()
    assert second.does(take(path, stale=1000)) == "done"
    processes.suspend(second)  # it lives
    time.sleep(3 * RENEW)
    assert f"held by process {second.pid}" in third.does(take(path, stale=0.1))


def test_on_another_host_who_is_silent_loses_it_and_writes_no_more(
    worker: Callable[[], Worker], tmp_path: pathlib.Path
) -> None:
    first, second = worker(), worker()
    file = tmp_path / "lease.json"
    for path in (str(file), f"objects:/{file}"):
        assert first.does(take(path)) == "done"
        move_to_another_host(file)
        assert first.does("check") == "done"
        # Who renews is not overtaken, however long the other would look.
        assert "held by process" in second.does(take(path, stale=60))
        processes.suspend(first)
        start = time.monotonic()
        assert second.does(take(path)) == "done"
        assert time.monotonic() >= start + STALE
        first.send_signal(signal.SIGCONT)
        said = first.does("check")
        assert f"--workdir=run was taken over by process {second.pid} on " in said
        assert first.does("release") == "done"
        assert second.does("check") == "done"
        assert second.does("release") == "done"
        assert not file.exists()
    for one in (first, second):  # without a lock
        one.order(f"take {path} 5 50")
    assert sorted(one.answer()[:4] for one in (first, second)) == ["done", "erro"]


def test_a_lease_that_cannot_be_read_for_a_moment_is_renewed_again(
    worker: Callable[[], Worker], tmp_path: pathlib.Path
) -> None:
    first, file = worker(), tmp_path / "lease.json"
    assert first.does(take(str(file))) == "done"
    content = file.read_bytes()
    file.write_bytes(b"")
    time.sleep(5 * RENEW)
    file.write_bytes(content)
    before = file.stat().st_mtime_ns
    end = time.monotonic() + 20
    while file.stat().st_mtime_ns == before:
        assert time.monotonic() < end
        time.sleep(RENEW)
    assert first.does("check") == "done"


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"pid": 2**22 + 1}, False),  # Linux has no such number
        ({"started": "1"}, False),  # the number is another process's by now
        ({"kernel": "before a boot"}, True),
        ({"host": "elsewhere"}, True),
        ({"pid": -1}, True),
        ({"pid": 10**30}, True),
        ({"pid": "1"}, True),
        ({"token": None}, True),
    ],
)
def test_who_is_dead_or_not_to_be_found_blocks_nobody(
    changes: dict[str, object],
    waits: bool,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = epath.Path(tmp_path / "lease.json")
    with Lease(path, "x"):
        this = json.loads(path.read_text())
    path.write_text(json.dumps({**this, **changes}))
    with Lease(path, "x", renew_seconds=0.05, stale_seconds=0.1) as lease:
        lease.check()
    assert ("waiting 0.1 s for a sign" in capsys.readouterr().err) == waits


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"17", b"\xff", b"null", b'{"pid": 1}', b"\0" * 99]
)
def test_a_lease_that_says_nothing_is_waited_for(
    content: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = epath.Path(tmp_path / "lease.json")
    path.write_bytes(content)
    with Lease(path, "x", renew_seconds=0.05, stale_seconds=0.1):
        pass
    assert "held by somebody" in capsys.readouterr().err


def test_it_is_not_held_twice_in_a_process_nor_when_it_cannot_be_read(
    tmp_path: pathlib.Path,
) -> None:
    path = epath.Path(tmp_path / "lease.json")
    with Lease(path, "x") as lease:
        with pytest.raises(LeaseError, match=f"x is held by process {os.getpid()}"):
            Lease(path, "x").__enter__()
        path.unlink()
        with pytest.raises(LeaseError, match=r"lease\.json has gone"):
            lease.check()
        path.mkdir()
        with pytest.raises(LeaseError, match="cannot be read"):
            lease.check()
    with pytest.raises(LeaseError, match="cannot be read"):
        Lease(path, "x").__enter__()
    with pytest.raises(LeaseError, match="cannot be read"):
        Lease(epath.Path(__file__) / "x", "x").__enter__()


def test_its_end_removes_it_whatever_the_end_is(tmp_path: pathlib.Path) -> None:
    before = threading.active_count()
    for end in (KeyboardInterrupt, ValueError, SystemExit):
        with (
            pytest.raises(end),
            Lease(epath.Path(tmp_path / "lease.json"), "x", renew_seconds=0.01),
        ):
            raise end
        assert list(tmp_path.iterdir()) == []
        assert threading.active_count() == before
