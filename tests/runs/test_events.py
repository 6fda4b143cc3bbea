"""Events outlive crashes, and goodput counts what was kept and nothing else."""

import datetime
import json
import pathlib
import time

import pytest
from etils import epath

from vgg_flax import storage
from vgg_flax.errors import Interrupted
from vgg_flax.runs import events
from vgg_flax.runs.goodput import Goodput


def lines(workdir: pathlib.Path) -> list[dict[str, object]]:
    """Every line of the file, which must all be whole."""
    text = (workdir / "events.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    "damage",
    [
        b'{"time": "2026-01-01T00:00:00+00:00", "event": "sta',
        b"\0\0\0\0",
        b"\xff\xfe\n",
        b'{"event": "save_star\n',
        b"17\n",
    ],
)
def test_what_a_crash_left_of_a_line_does_not_break_the_next_start(
    damage: bytes, tmp_path: pathlib.Path
) -> None:
    position = events.Position()
    first = events.Events(epath.Path(tmp_path), position, active=True)
    first.write("start")
    position.step = 7
    first.write("compiled", seconds=1.5)
    with (tmp_path / "events.jsonl").open("ab") as stream:
        stream.write(damage)
    second = events.Events(epath.Path(tmp_path), events.Position(), active=True)
    assert [event["event"] for event in second.past] == ["start", "compiled"]
    second.write("start")
    told = lines(tmp_path)
    assert [event["event"] for event in told] == ["start", "compiled", "start"]
    assert [event["step"] for event in told] == [0, 7, 0]
    assert told[1]["seconds"] == 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_only_the_writing_process_writes(tmp_path: pathlib.Path) -> None:
    other = events.Events(epath.Path(tmp_path), events.Position(), active=False)
    other.write("start")
    assert list(tmp_path.iterdir()) == []


def test_the_error_that_ends_a_run_is_told_and_a_stop_is_not_one(
    tmp_path: pathlib.Path,
) -> None:
    for error in (ValueError("no such thing"), Interrupted("stopped", 143)):
        with (
            pytest.raises(type(error)),
            events.Events(epath.Path(tmp_path), events.Position(), active=True),
        ):
            raise error
    (told,) = lines(tmp_path)
    assert (told["event"], told["type"]) == ("error", "ValueError")
    assert told["message"] == "no such thing"


def test_an_event_that_cannot_be_written_does_not_hide_the_error(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    workdir = epath.Path(tmp_path) / "run"
    workdir.mkdir()
    with (
        pytest.raises(ValueError, match="the real one"),
        events.Events(workdir, events.Position(), active=True),
    ):
        workdir.rmtree()
        raise ValueError("the real one")
    assert "event error is not recorded" in caplog.text


def test_a_record_that_cannot_be_written_is_an_error_and_the_next_is_whole(
    tmp_path: pathlib.Path,
) -> None:
    path = epath.Path(tmp_path) / "run" / "metrics.jsonl"
    path.parent.mkdir()
    file = storage.RecordFile(path, [])
    path.unlink()
    path.mkdir()
    with pytest.raises(storage.RunDirectoryError, match=r"metrics\.jsonl"):
        file.append({"step": 1})
    path.rmdir()
    path.write_text('{"step": 1')  # what a full disk took of it
    file.append({"step": 2})
    assert storage.read_records(path) == [{"step": 2}]


def ago(seconds: float) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return (now - datetime.timedelta(seconds=seconds)).isoformat()


def test_goodput_takes_over_what_led_to_the_step_it_resumes_from() -> None:
    past = [
        {"event": "start", "step": 0, "began": ago(1000)},
        {"event": "save_started", "step": 10, "productive_seconds": 100.0},
        {"event": "save_started", "step": 20, "productive_seconds": 300.0},
        {"event": "save_started", "step": 30, "productive_seconds": 700.0},
        {"event": "start", "step": 0, "began": ago(500)},  # 30 was damaged
        {"event": "resumed", "step": 20},
        {"event": "save_started", "step": 30, "productive_seconds": 500.0},
    ]
    for step, productive in ((20, 300.0), (30, 500.0), (25, 0.0)):
        goodput = Goodput()
        goodput.resume(past, step)
        facts = goodput.facts()
        assert facts["productive_seconds"] == productive
        assert facts["wall_seconds"] == pytest.approx(1000, abs=5)
        assert facts["goodput"] == pytest.approx(productive / 1000, abs=0.01)
        assert facts["goodput_since_start"] == 0


def test_goodput_counts_from_step_end_to_step_end_without_rests() -> None:
    goodput = Goodput()
    time.sleep(0.2)  # compiling and the first step
    goodput.step_ended()
    assert goodput.productive_seconds == 0
    time.sleep(0.2)
    goodput.step_ended()
    counted = goodput.productive_seconds
    assert counted >= 0.199
    time.sleep(0.2)  # an evaluation
    goodput.rest()
    assert goodput.productive_seconds == counted
    time.sleep(0.2)
    goodput.step_ended()
    facts = goodput.facts()
    # Both ends are rounded to milliseconds.
    assert counted + 0.199 <= facts["productive_seconds"]
    assert facts["productive_seconds"] <= facts["wall_seconds"] - 0.399
    assert facts["goodput"] == facts["goodput_since_start"]
    goodput.compiles()
    time.sleep(0.2)  # a step whose first call compiles
    goodput.step_ended()
    assert goodput.productive_seconds == facts["productive_seconds"]
