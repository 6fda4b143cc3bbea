"""Whatever happens to a step's folder: equal bits, or loudly the step before."""

import itertools
import json
import logging
import pathlib
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import ORBAX_LEAVES_COROUTINES

from vgg_flax.runs import checkpoint
from vgg_flax.runs.leaves import Checkpoint, DamagedStep

pytestmark = ORBAX_LEAVES_COROUTINES

EARLIER = pathlib.Path(__file__).parents[1] / "files" / "earlier" / "run"
STEPS = {15: None, 30: ("top1", 0.75), 45: ("top1", 0.5)}
META = {
    "model": {"variant": "vgg11_bn", "width_multiplier": 0.25, "fc_widths": [8, 8]},
    "preprocessing": {"mean": [0.485, 0.456, 0.406], "flip": False},
    "class_names": ["tench", "goldfish"],
    "evaluated": True,
}


def state(step: int) -> dict[str, Any]:
    """A small state, other in each step."""
    rng = np.random.default_rng(step)
    draw = {"kernel": (3, 3, 3, 8), "bias": (8,)}
    return {
        "params": {
            layer: {k: rng.normal(size=v).astype(np.float32) for k, v in draw.items()}
            for layer in ("conv1_1", "fc8")
        },
        "batch_stats": {"norm1_1": {"mean": rng.normal(size=8)}},
        "step": np.asarray(step, np.int32),
        "momentum": rng.normal(size=(30, 8)),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a run with STEPS, not to be changed."""
    workdir = tmp_path_factory.mktemp("whole")
    with checkpoint.Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        for step, score in STEPS.items():
            checkpoints.save(step, state(step), META, score)
            checkpoints.wait()
    return workdir


@pytest.fixture
def workdir(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines about damage since the last call."""

    def lines() -> list[str]:
        found = [r.getMessage() for r in caplog.records if r.name == "root"]
        caplog.clear()
        return [line for line in found if "checkpoint " in line]

    caplog.set_level(logging.ERROR)
    return lines


def step_files(workdir: pathlib.Path, step: int) -> list[pathlib.Path]:
    folder = workdir / "checkpoints" / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def newest(workdir: pathlib.Path) -> tuple[Checkpoint, list[int]]:
    """What a run would resume from, and the steps reported as damaged."""
    damaged = []
    with checkpoint.Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        found = checkpoints.read_newest(lambda step, _: damaged.append(step))
    assert found is not None
    return found, damaged


def expect_bits(found: Checkpoint) -> None:
    """Those that were saved as that step: arrays and what it says of itself."""
    flat = {"params/fc8/bias": state(found.step)["params"]["fc8"]["bias"]}
    flat["momentum"] = state(found.step)["momentum"]
    flat["params/conv1_1/kernel"] = state(found.step)["params"]["conv1_1"]["kernel"]
    flat["step"] = np.asarray(found.step, np.int32)
    for path, expected in flat.items():
        np.testing.assert_array_equal(found.leaves[path], expected, err_msg=path)
    assert len(found.leaves) == 7
    assert {name: found.meta[name] for name in META} == META


def twin(whole: pathlib.Path, path: pathlib.Path, workdir: pathlib.Path) -> bytes:
    """What step 30 has in a file of step 45's place, or in one beside that."""
    place = path.relative_to(workdir / "checkpoints" / "45")
    other = whole / "checkpoints" / "30" / place
    if not other.exists():  # the arrays' files have random names
        other = min(p for p in other.parent.iterdir() if p.is_file())
    return other.read_bytes()


def spoil(path: pathlib.Path, what: str, other: bytes, rng: random.Random) -> None:
    """Flips a bit, deletes, empties, halves, or puts the `other` step's bytes there."""
    data = bytearray(path.read_bytes())
    if what == "flipped":
        place = rng.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
    else:
        contents = {"emptied": b"", "halved": data[: len(data) // 2], "swapped": other}
        data = contents.get(what, data)
    path.write_bytes(data)
    if what == "deleted":
        path.unlink()


def cases(whole: pathlib.Path, sample: int, flips: int) -> Iterator[tuple[str, int]]:
    """(what happens, to which file).

    A third of the bits is of what a step says of itself, one of any byte, one of any
    file.
    """
    rng, files = random.Random(6), step_files(whole, 45)
    every, sizes = range(len(files)), [path.stat().st_size for path in files]
    (meta,) = (i for i in every if files[i].parts[-2:] == ("meta", "metadata"))
    flipped = [meta] * (flips - 2 * (flips // 3))
    flipped += [*rng.choices(every, sizes, k=flips // 3)]
    flipped += [*rng.choices(every, k=flips // 3)]
    yield from (("flipped", i) for i in flipped)
    kinds = ("deleted", "emptied", "halved", "swapped")
    others = list(itertools.product(kinds, every))
    yield from rng.sample(others, min(sample, len(others)))


@pytest.mark.parametrize(
    ("sample", "flips"), [(8, 18), pytest.param(999, 200, marks=pytest.mark.slow)]
)
def test_a_spoiled_file_gives_equal_bits_or_loudly_the_step_before(
    sample: int,
    flips: int,
    whole: pathlib.Path,
    tmp_path: pathlib.Path,
    told: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, outcomes = random.Random(7), []
    raised: list[str] = []  # by the reads that a failed one leaves behind
    monkeypatch.setattr(
        sys, "unraisablehook", lambda error: raised.append(str(error.exc_value))
    )
    for i, (what, which) in enumerate(cases(whole, sample, flips)):
        workdir = pathlib.Path(shutil.copytree(whole, tmp_path / f"{i}"))
        path = step_files(workdir, 45)[which]
        spoil(path, what, twin(whole, path, workdir), rng)
        case = f"{path} {what}"
        found, damaged = newest(workdir)
        expect_bits(found)
        lines = told()
        if found.step == 45:
            assert (damaged, lines) == ([], []), case
        else:
            assert (found.step, damaged) == (30, [45]), case
            (line,) = lines
            assert "checkpoints/45 " in line and "falling back" in line, case
            assert (workdir / "damaged" / "45").is_dir(), case
        outcomes.append(found.step)
        shutil.rmtree(workdir)
    assert {30, 45} == set(outcomes)
    assert "Event loop is closed" not in raised


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(an object or list of some JSON, a key of it), of all in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


@pytest.mark.parametrize("change", ["deleted", "null", "renamed"])
def test_nothing_can_be_taken_from_what_a_step_says_of_itself(
    change: str, workdir: pathlib.Path
) -> None:
    """The sha256 neither: the rest does not pass for a step of before."""
    path = workdir / "checkpoints/45/meta/metadata"
    text = path.read_text()
    count = len(list(places(json.loads(text))))
    assert count > 40
    with checkpoint.Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        for i in range(count):
            document = json.loads(text)
            holder, key = next(itertools.islice(places(document), i, None))
            if change == "null":
                holder[key] = None
            else:
                value = holder.pop(key)
                if change == "renamed" and isinstance(holder, dict):
                    holder[f"{key}_"] = value
            path.write_text(json.dumps(document))
            with pytest.raises(DamagedStep, match=r"checkpoints/45 cannot be read"):
                checkpoints.read(45)
        path.write_text(text)
        expect_bits(checkpoints.read(45))


@pytest.mark.parametrize("later_ones_gone", [True, False])
def test_a_step_under_another_number_is_damaged(
    later_ones_gone: bool, workdir: pathlib.Path, told: Callable[[], list[str]]
) -> None:
    steps = workdir / "checkpoints"
    shutil.copytree(steps / "30", steps / "59")
    if later_ones_gone:
        shutil.rmtree(steps / "45")
    with pytest.raises(DamagedStep, match=r"59 is damaged: .* saved as step 30"):
        checkpoint.load(workdir, 59)
    left = 30 if later_ones_gone else 45
    assert checkpoint.load(workdir, "last").step == left
    found, damaged = newest(workdir)
    assert (found.step, damaged) == (left, [59])
    expect_bits(found)
    assert all("saved as step 30" in line for line in told())


def test_what_is_no_step_is_told_and_left_alone_or_set_aside(
    workdir: pathlib.Path,
    told: Callable[[], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = workdir / "checkpoints"
    for name in ("059", "copy of 45", "\N{FULLWIDTH DIGIT NINE}", "-60"):
        shutil.copytree(steps / "45", steps / name)
    (steps / "61").mkdir()
    (steps / "62").write_text("a file in a folder's place")
    (steps / "63").mkdir()
    (steps / "63" / "default").mkdir()  # Orbax's name for a step of one item
    (steps / "64.orbax-checkpoint-tmp-1").mkdir()
    (steps / "5").write_text("an older one")
    assert checkpoint.load(workdir).step == 45
    assert len(told()) == 3
    found, damaged = newest(workdir)
    assert (found.step, damaged) == (45, [63, 62, 61, 5])
    expect_bits(found)
    assert len(told()) == 4
    line = "'-60', '059', 'copy of 45', '\N{FULLWIDTH DIGIT NINE}' ignored"
    assert capsys.readouterr().err.count(line) == 2
    with checkpoint.Checkpoints(steps, keep=3) as checkpoints:
        checkpoints.save(62, state(62), META, None)
        checkpoints.wait()
        assert checkpoints.steps() == [30, 45, 62]


def test_the_best_is_not_lost_without_a_word(
    workdir: pathlib.Path, told: Callable[[], list[str]]
) -> None:
    (workdir / "checkpoints/30/meta/metadata").unlink()
    assert checkpoint.load(workdir, "best").step == 45
    (line,) = told()
    assert "checkpoints/30 cannot be read" in line and "without it" in line
    assert newest(workdir)[1] == [30]
    (line,) = told()
    assert "checkpoints/30 cannot be read" in line and "set aside" in line


def test_a_run_knows_its_best_whatever_happens_to_the_file_meanwhile(
    workdir: pathlib.Path,
) -> None:
    with checkpoint.Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        (workdir / "checkpoints/30/meta/metadata").write_text("")
        for step in (60, 75):
            checkpoints.save(step, state(step), META, ("top1", 0.5))
            checkpoints.wait()
        assert checkpoints.best_step() == 30
        assert checkpoints.steps() == [30, 75]


def test_a_run_whose_steps_were_all_damaged_does_not_start_anew_the_next_time(
    workdir: pathlib.Path,
) -> None:
    for step in STEPS:
        (workdir / f"checkpoints/{step}/meta/metadata").write_text("{}")
    for _ in range(2):
        with pytest.raises(checkpoint.CheckpointError, match=r"steps \[15, 30, 45\]"):
            newest(workdir)
    with pytest.raises(checkpoint.CheckpointError, match="no finished checkpoint"):
        checkpoint.load(workdir)


def test_if_none_is_left_to_load_all_are_named(workdir: pathlib.Path) -> None:
    for step in STEPS:
        (workdir / f"checkpoints/{step}/meta/metadata").write_text("[]")
    for step in ("last", "best"):
        with pytest.raises(checkpoint.CheckpointError, match="all checkpoints in"):
            checkpoint.load(workdir, step)


def test_steps_of_before_are_read_and_that_is_told(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = shutil.copytree(EARLIER, tmp_path / "run")
    for step, number in (("last", 34), ("best", 30)):
        assert checkpoint.load(workdir, step).step == number
        (line,) = capsys.readouterr().err.splitlines()
        assert f"checkpoints/{number} was saved by a version that sealed" in line
    # Its state counts its updates, and so not even that one can be renamed.
    shutil.copytree(workdir / "checkpoints/30", workdir / "checkpoints/59")
    found, damaged = newest(workdir)
    assert (found.step, damaged) == (34, [59])


def test_an_earlier_steps_score_is_its_own(
    tmp_path: pathlib.Path, told: Callable[[], list[str]]
) -> None:
    workdir = shutil.copytree(EARLIER, tmp_path / "run")
    for spoiled in ("", '{"top1": null}'):
        (workdir / "checkpoints/30/metrics/metrics").write_text(spoiled)
        assert checkpoint.load(workdir).step == 34
        assert told() == []
        with pytest.raises(checkpoint.CheckpointError, match="no best step"):
            checkpoint.load(workdir, "best")
        assert "checkpoints/30 cannot be read" in told()[0]
    found, damaged = newest(workdir)
    assert (found.step, damaged) == (34, [30])
