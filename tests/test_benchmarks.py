"""Benchmarks: contenders take turns, rows are kept, and the report says what they say.

Nothing is timed: the contenders here are processes that answer with given values.
"""

import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import PIL.Image
import pytest

from benchmarks import __main__ as command
from benchmarks import environments, pairs, report, targets, workers
from benchmarks.pairs import Row
from benchmarks.workers import Contender

# Answers with the next of SPEC's values, and notes whose turn it is; a thread of its
# works on when its turn is over. It ends where there is a file that says so.
_CONTENDER = """
import os, pathlib, threading, time
from benchmarks.contenders import serve

def prepare(spec):
    log = open(spec["log"], "a", buffering=1)
    print(spec["name"], "pid", os.getpid(), file=log)
    values = iter(spec["values"])

    def work_on():
        while True:
            print(spec["name"], "works", file=log)
            time.sleep(0.002)

    threading.Thread(target=work_on, daemon=True).start()

    def run(repetitions):
        assert not os.path.exists(spec["log"] + "-" + spec["name"]), "told to fail"
        print(spec["name"], "begins", repetitions, file=log)
        time.sleep(0.02)
        print("this goes to standard error, whoever prints it")
        print(spec["name"], "ends", file=log)
        return next(values)

    return run, {"outputs": spec["outputs"]}

serve.serve(prepare)
"""
OURS, THEIRS = [2.0, 1.0, 4.0], [3.0, 4.0, 2.0]


@pytest.fixture
def log(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """What the contenders write; their module is where their interpreters find it."""
    path = tmp_path / "benchmarks" / "contenders" / "given.py"
    path.parent.mkdir(parents=True)
    path.write_text(_CONTENDER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "log"


def make_row(log: pathlib.Path, name: str = "row", **fields: Any) -> Row:
    """Of two contenders; ours takes 2, 1 and 4 for what theirs takes 3, 4 and 2."""

    def contender(who: str, values: list[float]) -> Contender:
        outputs = str(log.with_name(f"{who}.npz"))
        spec = {"name": f"{name}-{who}", "values": values, "outputs": outputs}
        return Contender(who, "ours", "given", {**spec, "log": str(log)})

    fields = {"amount": 10, "sized": False} | fields
    ours, theirs = contender("ours", OURS), contender("theirs", THEIRS)
    return Row("loop", name, "others", ours, (theirs,), **fields)


def session(folder: pathlib.Path) -> workers.Session:
    """Of this interpreter."""
    return workers.Session(environments.Interpreters({}), folder)


def test_contenders_take_turns_and_nothing_works_in_the_others(
    log: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = pairs.measure(make_row(log), session(tmp_path), 3, 1.0)

    lines = [line.split() for line in log.read_text().splitlines()]
    begun = [who for who, what, *_ in lines if what == "begins"]
    assert begun == ["row-ours", "row-theirs"] * 3
    for who in ("row-ours", "row-theirs"):  # between the other's begin and end
        events = [(w, what) for w, what, *_ in lines]
        starts = [i for i, event in enumerate(events) if event == (who, "begins")]
        ends = [i for i, event in enumerate(events) if event == (who, "ends")]
        for start, end in zip(starts, ends, strict=True):
            assert {w for w, _ in events[start:end]} == {who}
    # By hand: 10 images in 2 s against 3 s, 1 against 4, 4 against 2.
    assert [round(x, 9) for x in found["ours_each"]] == [5, 10, 2.5]
    each = [3 / 2, 4 / 1, 2 / 4]
    assert found["ratio"] == pytest.approx(statistics.median(each))
    assert (found["min"], found["max"]) == pytest.approx((0.5, 4.0))


def test_of_costs_less_is_ours_over_theirs(
    log: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = pairs.measure(make_row(log, amount=0), session(tmp_path), 3, 1.0)
    assert (found["ours"], found["theirs"]) == (2.0, 3.0)
    assert (found["ratio"], found["min"], found["max"]) == (2 / 3, 1 / 4, 2.0)


@pytest.mark.parametrize("amount", [0, 10])
def test_the_peers_best_is_the_fastest_of_the_trial(
    log: pathlib.Path, tmp_path: pathlib.Path, amount: int
) -> None:
    """Of a row of costs too, such as memory's, whose trial is one of speed."""
    (slow,) = make_row(log).theirs
    fast, slow = (
        dataclasses.replace(slow, label=label, spec=slow.spec | {"values": [value] * 9})
        for label, value in (("fast", 1.0), ("slow", 2.0))
    )
    tried = dataclasses.replace(make_row(log), theirs=(slow, fast))
    row = dataclasses.replace(tried, amount=amount, trial=tried)
    best, trial = pairs.fastest(row, session(tmp_path), 1.0)
    assert (best.label, trial) == ("fast", {"slow": 5.0, "fast": 10.0})


def test_repetitions_fill_the_time_that_is_wanted() -> None:
    asked = []

    def measure(repetitions: int) -> float:
        asked.append(repetitions)
        return 0.25 * repetitions

    assert pairs.sized(measure, 2.0) == (8, 0.25)
    assert pairs.sized(measure, 0.01) == (1, 0.25)
    assert asked == [1, 1, 1, 1]  # each warmed up first


def test_what_was_made_ahead_does_not_make_the_repetitions_many() -> None:
    ahead = 4
    asked = []

    def measure(repetitions: int) -> float:
        nonlocal ahead
        asked.append(repetitions)
        made = min(ahead, repetitions)
        ahead -= made
        return 1e-5 * made + 0.04 * (repetitions - made)

    assert pairs.sized(measure, 2.0) == (50, pytest.approx(0.04))
    assert asked == [1, 1, 2, 4, 8]


def test_outputs_are_compared_before_anything_is_timed(
    log: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    logits = np.array([1.0, -4.0, 2.0], np.float32)
    np.savez(tmp_path / "ours.npz", logits=logits)
    np.savez(tmp_path / "theirs.npz", logits=logits + np.float32(0.02))
    row = make_row(log, tolerance=0.01)
    found = pairs.measure(row, session(tmp_path), 1, 1.0)
    assert found["differences"]["logits"] == pytest.approx(0.02 / 3.98, rel=1e-3)

    log.unlink()
    np.savez(tmp_path / "theirs.npz", logits=logits + np.float32(0.05))
    with pytest.raises(workers.ContenderError, match="outputs differ"):
        pairs.measure(row, session(tmp_path), 1, 1.0)
    assert "begins" not in log.read_text()
    np.savez(tmp_path / "theirs.npz", logits=logits * np.nan)
    with pytest.raises(workers.ContenderError, match="not finite"):
        pairs.measure(row, session(tmp_path), 1, 1.0)


def call(results: pathlib.Path, *arguments: str) -> int:
    """`python -m benchmarks loop`, here."""
    words = ["loop", f"--results={results}", "--pairs=3", *arguments]
    return command.measure(command.parser().parse_args(words))


def test_what_was_measured_is_kept(
    log: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [make_row(log, "first"), make_row(log, "second")]
    monkeypatch.setitem(command.SUITES, "loop", lambda: rows)
    failing = log.with_name("log-second-theirs")
    failing.touch()
    assert call(tmp_path / "results") == 1
    out = capsys.readouterr().err
    assert "first, over others: 1.500 (0.500 to 4.000)" in out
    assert "second, over others: failed: " in out and "told to fail" in out
    assert "1 rows are not measured" in out

    failing.unlink()
    assert call(tmp_path / "results", "--minutes=0") == 1
    assert "second, over others: left for next time" in capsys.readouterr().err
    assert call(tmp_path / "results") == 0
    assert "first, over others: kept" in capsys.readouterr().err
    kept = json.loads((tmp_path / "results" / "loop.json").read_text())
    assert [row["name"] for row in kept] == ["first", "second"]
    assert log.read_text().count("first-ours begins") == 3
    assert call(tmp_path / "results", "--again", "--row=first") == 0
    assert log.read_text().count("first-ours begins") == 6

    kept[0]["versions"]["ours"]["numpy"] = "0.1"  # as if measured with another
    (tmp_path / "results" / "loop.json").write_text(json.dumps(kept))
    assert call(tmp_path / "results") == 0
    assert log.read_text().count("first-ours begins") == 9
    assert log.read_text().count("second-ours begins") == 4  # one of them had failed
    assert len(json.loads((tmp_path / "results" / "loop.json").read_text())) == 2


def test_contenders_end_with_a_parent_that_is_killed(
    log: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    row = make_row(log)
    spec = {**row.ours.spec, "threads": 1, "cores": sorted(os.sched_getaffinity(0))}
    program = f"""
import pathlib, sys, time
from benchmarks import workers
words = [sys.executable, "-m", "benchmarks.contenders.given", {json.dumps(spec)!r}]
worker = workers.Worker(words, 1, pathlib.Path({str(tmp_path / "errors")!r}))
worker.begin()
print("begun", flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        cwd=workers.ROOT,
        env=os.environ | {"PYTHONPATH": f"{workers.ROOT}:{tmp_path}"},
        start_new_session=True,
    )
    assert parent.stdout is not None and parent.stdout.readline() == b"begun\n"
    pid = int(log.read_text().split()[2])
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    for _ in range(1000):
        status = pathlib.Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the stopped contender lives on")


def result(name: str, peer: str, ratio: float, ours: float) -> dict[str, Any]:
    """A row as files have it."""
    return {
        "name": name,
        "peer": peer,
        "jax": "0.10.2",
        "unit": "images/s",
        "smaller_is_better": False,
        "pairs": 5,
        "versions": {"ours": {"python": "3.11.7", "jax": "0.10.2"}},
        "machine": {
            "processor": "Z80",
            "cores": 2,
            "memory_gib": 24,
            "system": "CP/M 2",
        },
        "date": "2026-11-26T10:00:00+00:00",
        "commit": "abc",
        "load": [0.5, 2.25],
        "ratio": ratio,
        "min": ratio / 2,
        "max": ratio * 2,
        "ours": ours,
        "theirs": ours / ratio,
        "mode": "eager",
    }


def test_the_report_says_what_the_files_say(tmp_path: pathlib.Path) -> None:
    vgg16 = "vgg16, batch 8"
    rows = [result(vgg16, "torchvision", 1.05, 1234.5)]
    rows += [result(vgg16, "Keras on JAX", 1.9, 2.0)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    alone = result("vgg-flax --help", "", 1.0, 0.25) | {"unit": "s"}
    (tmp_path / "startup.json").write_text(json.dumps([alone]))
    report.write(tmp_path, tmp_path / "README.md")

    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "README.md").read_text().splitlines()
        if line.startswith("| vgg")
    ]
    assert cells[0] == [
        *(vgg16, "torchvision, eager", "0.10.2", "1.05 (0.53 to 2.10)"),
        *("1,234 images/s", "1,176 images/s", "1", "1.2", "floor"),
    ]
    assert cells[1][3:] == [
        *("1.90 (0.95 to 3.80)", "2 images/s", "1.05 images/s", "2", "3", "**no**")
    ]
    assert cells[2][3:] == ["", "0.25 s", "", "0.5", "0.3", "goal"]
    text = (tmp_path / "README.md").read_text()
    assert "- Z80, 2 cores, 24 GiB, CP/M 2\n" in text
    assert "load average before and after rows 0.5 to 2.2" in text
    with PIL.Image.open(tmp_path / "ratios.png") as image:
        assert image.width > 500 and np.asarray(image.convert("L")).std() > 5


def test_less_is_better_where_the_goal_is_below_the_floor() -> None:
    row = ("memory", "train vgg16, batch 8", "torchvision")
    assert [targets.outcome(*row, x) for x in (1.2, 1.05, 0.9)] == [
        *("below", "floor", "goal")
    ]
    assert targets.outcome("memory", "another", "", 1.0) == ""


def test_all_rows_have_their_files_and_all_targets_a_row() -> None:
    rows = [row for rows in command.SUITES.values() for row in rows()]
    keys = [(row.benchmark, row.name, row.peer) for row in rows]
    assert len(set(keys)) == len(keys)
    assert set(targets.TARGETS) <= set(keys)
    folder = workers.ROOT / "benchmarks"
    for row in rows:
        for contender in (row.ours, *row.theirs):
            modules = [contender.module, contender.spec.get("module", "serve")]
            for module in modules:
                assert (folder / "contenders" / f"{module}.py").exists(), module
            name = contender.environment
            assert name == "ours" or (folder / f"requirements-{name}.txt").exists()
