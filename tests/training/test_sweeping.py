"""Sweeps in real processes: their runs, table and picture; killed, and in an array."""

import csv
import pathlib
import re
import signal
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
from conftest import changed, random_net, save_run
from etils import epath

from configs import default
from tests import processes
from tests.processes import finish, finished_steps
from vgg_flax import config as config_lib
from vgg_flax import errors, storage
from vgg_flax.config import sweep
from vgg_flax.metrics import Metric
from vgg_flax.runs import log, sweep_plot, sweep_table
from vgg_flax.training import sweeping
from vgg_flax.training.objectives import CLASSIFICATION

TINY = [
    f"--config={processes.ROOT / 'tests' / 'shallow.py'}",
    "--config.model.width_multiplier=0.0625",
    "--config.model.head=gap",
    "--config.num_steps=2",
    "--config.checkpoint_every_steps=1",
    "--config.log_every_steps=1",
]
SWEEP = ["--sweep=optimizer.learning_rate=[0.01, 0.1]", "--sweep", "seed=[0, 1]"]
RATES, SEEDS = ("0.01", "0.1"), ("0", "1")


def start(
    workdir: pathlib.Path, digits_dir: str, *flags: str, sweep: list[str] = SWEEP
) -> processes.Process:
    """`python train.py` on one CPU device."""
    data = f"--config.data.data_dir={digits_dir}"
    return processes.start(workdir, [[*TINY, data, *sweep, *flags]], devices=1)[0]


def folder(workdir: pathlib.Path, rate: str, seed: str) -> pathlib.Path:
    return workdir / f"learning_rate={rate},seed={seed}"


def table(workdir: pathlib.Path) -> list[dict[str, str]]:
    with (workdir / "sweep.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def last_events(workdir: pathlib.Path) -> dict[str, Any]:
    """By the folder's name."""
    return {
        path.parent.name: storage.read_records(epath.Path(path))[-1]
        for path in workdir.glob("*/events.jsonl")
    }


def check_table(workdir: pathlib.Path, rates: Sequence[str] = RATES) -> None:
    """The table's figures are those of the runs' own records, by other means."""
    rows = table(workdir)
    assert [row["optimizer.learning_rate"] for row in rows] == list(rates)
    for row in rows:
        assert (row["runs"], row["complete"], row["incomplete"]) == ("2", "2", "")
        for split in ("validation", "test"):
            runs = [folder(workdir, row["optimizer.learning_rate"], s) for s in SEEDS]
            last = [
                [r for r in log.read_records(run) if r["split"] == split][-1]
                for run in runs
            ]
            assert [record["step"] for record in last] == [2, 2]
            for name in ("loss", "top1"):
                values = [record[name] for record in last]
                found = [
                    float(row[f"{split}_{name}{end}"])
                    for end in ("", "_std", "_min", "_max")
                ]
                expected = [np.mean(values), np.std(values, ddof=1)]
                expected += [min(values), max(values)]
                np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_runs_of_one_process_follow_each_other_and_leave_nothing_on_the_devices(
    bare_config: config_lib.Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = changed(bare_config, num_steps=2, num_epochs=1.0)
    before = {id(array) for array in jax.live_arrays()}
    points = sweep.points(["optimizer.learning_rate=[0.01]", "seed=[0, 1]"], config)
    sweeping.run(points, tmp_path)
    left = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.size for array in left) < 10  # none of 10,000 params
    check_table(tmp_path, ["0.01"])
    assert capsys.readouterr().out.splitlines()[-1] == f"in full: {tmp_path}/sweep.csv"
    with PIL.Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (1000, 400)


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, digits_dir: str
) -> tuple[pathlib.Path, str]:
    """A sweep of two by two runs, and what it printed."""
    workdir = tmp_path_factory.mktemp("sweeps") / "whole"
    code, out, err = finish(start(workdir, digits_dir))
    assert code == 0, err
    return workdir, out


@pytest.mark.slow
def test_a_sweep_trains_every_setting_and_tells_them_in_a_table(
    swept: tuple[pathlib.Path, str],
) -> None:
    workdir, out = swept
    names = [folder(workdir, rate, seed).name for rate in RATES for seed in SEEDS]
    files = {"sweep.csv", "sweep.png"}
    assert {path.name for path in workdir.iterdir()} == {*names, *files}
    assert {name: e["event"] for name, e in last_events(workdir).items()} == (
        dict.fromkeys(names, "complete")
    )
    check_table(workdir)
    printed = out.splitlines()[-6:]
    assert printed[0].split() == [
        *("optimizer.learning_rate", "runs", "validation", "top1", "validation"),
        *("loss", "test", "top1", "test", "loss"),
    ]
    for line, row in zip(printed[2:4], table(workdir), strict=True):
        assert line.split()[:2] == [row["optimizer.learning_rate"], "2/2"]
        assert (
            f"{float(row['test_top1']):.2%} ± {float(row['test_top1_std']):.2%} ("
            in (line)
        )
    best = max(
        table(workdir),
        key=lambda row: (float(row["validation_top1"]), -float(row["validation_loss"])),
    )
    rate = best["optimizer.learning_rate"]
    assert printed[4].startswith(
        f"best by validation top1: optimizer.learning_rate={rate}: "
    )
    with PIL.Image.open(workdir / "sweep.png") as picture:
        assert picture.size == (1000, 400)


@pytest.mark.slow
def test_runs_of_a_sweep_are_those_of_train_py_alone(
    swept: tuple[pathlib.Path, str], digits_dir: str, tmp_path: pathlib.Path
) -> None:
    """The last of four in its process has the bits of one in a process of its own."""
    flags = ["--config.optimizer.learning_rate=0.1", "--config.seed=1"]
    code, _, err = finish(start(tmp_path, digits_dir, *flags, sweep=[]))
    assert code == 0, err
    last = folder(swept[0], "0.1", "1")
    assert processes.crcs(tmp_path, 2) == processes.crcs(last, 2)


def test_a_mistake_in_the_last_run_costs_nothing(tmp_path: pathlib.Path) -> None:
    bad = ["--sweep=seed=[0, 1]", "--sweep=optimizer.momentum=[0.9, 9]"]
    for flags, message in (
        ([*SWEEP, "--sweep_index=4"], "the sweep has 4 runs; expected 0 to 3"),
        (bad, "the run of seed=0, optimizer.momentum=9: config.optimizer.momentum=9"),
    ):
        code, out, err = finish(processes.start(tmp_path / "new", [flags])[0])
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert message in err and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_only_the_data_or_devices_can_tell_is_told_before_any_run(
    digits_dir: str, tmp_path: pathlib.Path
) -> None:
    for last, message in (
        ("--sweep=data.test_split=['test', 'tset']", "test_split=tset: .*tset"),
        ("--sweep=model.num_classes=[10, 7]", "num_classes=7: .* has 10 classes"),
        ("--sweep=init_from=['', '/none.pth']", "init_from=%2Fnone.pth"),
        ("--sweep=optimizer.accumulation_steps=[1, 5]", "accumulation_steps=5: .*5"),
        ("--sweep=freeze=[(), ('fc9',)]", "freeze=fc9: .*fc9"),
    ):
        workdir = tmp_path / "sweep"
        code, out, err = finish(start(workdir, digits_dir, sweep=[last]))
        assert code == 1, (last, out)
        assert "--sweep_index" not in out  # none has begun
        line = err.splitlines()[-1]
        assert re.search(message, line), line


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(
    swept: tuple[pathlib.Path, str], digits_dir: str, tmp_path: pathlib.Path
) -> None:
    second = folder(tmp_path, "0.01", "1")
    process = start(tmp_path, digits_dir)
    processes.wait_for([process], lambda: bool(finished_steps(second)))
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    first = folder(tmp_path, "0.01", "0")
    before = processes.crcs(first, 2)
    times = [(first / "checkpoints" / "2").stat().st_mtime_ns]
    code, out, err = finish(start(tmp_path, digits_dir))
    assert code == 0, err
    assert f"complete: {first}" in out
    events = storage.read_records(epath.Path(second) / "events.jsonl")
    assert [e["event"] for e in events].count("resumed") == 1
    assert (first / "checkpoints" / "2").stat().st_mtime_ns == times[0]
    assert processes.crcs(first, 2) == before
    check_table(tmp_path)
    ours, theirs = table(tmp_path), table(swept[0])
    assert ours == theirs  # the very numbers of the sweep that nothing happened to


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_whole_sweep(
    number: signal.Signals, digits_dir: str, tmp_path: pathlib.Path
) -> None:
    process = start(tmp_path, digits_dir, "--config.num_steps=2000")
    first = folder(tmp_path, "0.01", "0")
    processes.wait_for([process], lambda: bool(finished_steps(first)))
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    last = err.splitlines()[-1]
    assert f"stopped by {number.name} at step" in last
    assert "that was run 1 of 4" in last
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


@pytest.mark.slow
def test_an_array_of_jobs_makes_the_same_table(
    swept: tuple[pathlib.Path, str], digits_dir: str, tmp_path: pathlib.Path
) -> None:
    for index in (3, 0, 2):
        code, out, err = finish(start(tmp_path, digits_dir, f"--sweep_index={index}"))
        assert code == 0, err
    assert "seed 1: not begun" in out
    first, second = table(tmp_path)
    assert (first["complete"], second["complete"]) == ("1", "2")
    assert first["incomplete"] == "seed 1: not begun"
    assert first["test_top1_std"] == ""
    assert finish(start(tmp_path, digits_dir, "--sweep_index=1")).code == 0
    assert table(tmp_path) == table(swept[0])


@pytest.mark.slow
def test_several_processes_sweep_together(
    swept: tuple[pathlib.Path, str], digits_dir: str, tmp_path: pathlib.Path
) -> None:
    flags = [*TINY, f"--config.data.data_dir={digits_dir}", *SWEEP]
    both = processes.start(tmp_path, [flags, flags], devices=2)
    with processes.killed_at_the_end(both):
        ended = [finish(process) for process in both]
    assert [end.code for end in ended] == [0, 0], [end.err for end in ended]
    assert "best by validation" in ended[0].out
    said = [line for line in ended[1].out.splitlines() if "[Gloo]" not in line]
    assert said == []
    check_table(tmp_path)


@pytest.mark.slow
def test_a_run_that_diverges_is_a_result(
    digits_dir: str, tmp_path: pathlib.Path
) -> None:
    rates = ["--sweep=optimizer.learning_rate=[1e30, 0.01]"]
    constant = "--config.optimizer.schedule=constant"
    warmup = "--config.optimizer.warmup_epochs=0"
    code, out, err = finish(start(tmp_path, digits_dir, constant, warmup, sweep=rates))
    assert code == 0, err
    diverged, whole = table(tmp_path)
    assert diverged["incomplete"].startswith("diverged at step ")
    assert whole["incomplete"] == "" and "test_top1_std" not in whole
    assert "diverged at step" in out.splitlines()[-3]


# The table of runs that were not trained: written by hand


def write_run(run: pathlib.Path, event: dict[str, Any], top1: float | None) -> None:
    run.mkdir(parents=True)
    events = storage.RecordFile(epath.Path(run) / "events.jsonl", [])
    events.append({"event": "start", "step": 0})
    events.append({"step": 9, **event})
    if top1 is not None:
        records = storage.RecordFile(epath.Path(run) / "metrics.jsonl", [])
        record = {"split": "test", "top1": top1, "loss": 1 - top1, "count": 10}
        for step in (4, 9):
            records.append({"step": step, **record})


def test_settings_that_change_together_are_drawn_as_a_list(
    tmp_path: pathlib.Path,
) -> None:
    together = "optimizer.name,optimizer.learning_rate,averaging.decay"
    values = [("sgd", 0.02, 0.0), ("adamw", 1e-3, 0.0), ("adamw", 1e-3, 0.99)]
    flags = [f"{together}={values}", "seed=[0, 1]"]
    points = sweep.points(flags, default.get_config())
    for number, point in enumerate(points):
        run = tmp_path / point.folder
        write_run(run, {"event": "complete"}, 0.5 + number / 20)
    rows = sweep_table.rows(points, epath.Path(tmp_path))
    sweep_plot.draw(rows, CLASSIFICATION.metrics, epath.Path(tmp_path / "list.png"))
    with PIL.Image.open(tmp_path / "list.png") as picture:
        assert picture.size == (1000, 300)  # inches: 1.5 and a half for each of three
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for color in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):  # matplotlib's first
        found = np.argwhere(abs(pixels - color).max(axis=-1) < 8)
        assert len(found) > 50
    text = sweep_table.text(rows, CLASSIFICATION.metrics)
    settings = [line.split("  ")[0] for line in text.splitlines()[2:5]]
    first = "optimizer.name=sgd, learning_rate=0.02"
    assert settings == [first, "the usual", "decay=0.99"]
    assert "the usual: optimizer.name=adamw, optimizer.learning_rate=0.001," in text
    assert "best by test top1" in text


@pytest.mark.parametrize(
    "flag",
    [
        "init_from,init_ema=[({run!r}, False), ({run!r}, True)]",
        "distillation.teacher,distillation.teacher_ema=[('', False), ({run!r}, True)]",
    ],
)
def test_an_average_that_is_not_there_is_told_before_the_first_run(
    tiny_config: config_lib.Config, tmp_path: pathlib.Path, flag: str
) -> None:
    run = save_run(random_net("vgg11_bn", in_channels=1, head="gap"), tmp_path / "of")
    config = changed(tiny_config, model__head="gap")
    points = sweep.points([flag.format(run=str(run))], config)
    with pytest.raises(errors.ConfigError, match=r"ema=True.* has no average"):
        sweeping.check(points, tmp_path / "sweep", CLASSIFICATION)
    assert not (tmp_path / "sweep").exists()


def test_a_table_says_what_is_missing_and_why(tmp_path: pathlib.Path) -> None:
    flags = ["optimizer.momentum=[0.5, 0.9]", "seed=[0, 1, 2]"]
    points = sweep.points(flags, default.get_config())
    complete = {"event": "complete"}
    write_run(tmp_path / points[0].folder, complete, 0.25)
    write_run(tmp_path / points[1].folder, complete, 0.5)
    write_run(tmp_path / points[2].folder, {"event": "save_started"}, 0.9)
    error = {"event": "error", "message": ""}
    write_run(tmp_path / points[3].folder, error | {"type": "NonFiniteError"}, 0.9)
    write_run(tmp_path / points[4].folder, error | {"type": "DataError"}, None)
    rows = sweep_table.rows(points, epath.Path(tmp_path))
    assert [row.missing for row in rows] == [
        "seed 2: incomplete, at step 9",
        "seed 0: diverged at step 9; seed 1: DataError at step 9; seed 2: not begun",
    ]
    top1 = Metric("top1", ".2%", is_share=True)
    spread = rows[0].spread("test", top1)
    assert spread is not None and rows[1].spread("test", top1) is None
    assert spread.std == pytest.approx(statistics.stdev([0.25, 0.5]))
    assert spread.text(top1) == "37.50% ± 17.68% (25.00% to 50.00%)"
    lines = sweep_table.text(rows, CLASSIFICATION.metrics).splitlines()
    assert "37.50% ± 17.68%" in lines[2] and "incomplete, at step 9" in lines[2]
    assert lines[3].split()[:2] == ["0.9", "0/3"] and "not begun" in lines[3]


def test_of_equal_means_the_smaller_loss_is_the_best(tmp_path: pathlib.Path) -> None:
    """0.35 and 0.425 have a mean of 0.3875, and in floats one that is smaller."""
    flags = ["optimizer.momentum=[0.5, 0.9]", "seed=[0, 1]"]
    points = sweep.points(flags, default.get_config())
    for point, top1, loss in zip(
        points, (0.35, 0.425, 0.375, 0.4), (1.0, 1.1, 1.2, 1.3), strict=True
    ):
        run = tmp_path / point.folder
        write_run(run, {"event": "complete"}, None)
        records = storage.RecordFile(epath.Path(run) / "metrics.jsonl", [])
        record = {"step": 9, "split": "validation", "top1": top1, "loss": loss}
        records.append(record)
    rows = sweep_table.rows(points, epath.Path(tmp_path))
    last = sweep_table.text(rows, CLASSIFICATION.metrics).splitlines()[-1]
    assert last.startswith("best by validation top1: optimizer.momentum=0.5: 38.75%")


def test_a_table_has_what_decides_of_an_average_and_of_the_best_step(
    tmp_path: pathlib.Path,
) -> None:
    points = sweep.points(["seed=[0]"], default.get_config())
    run = tmp_path / points[0].folder
    write_run(run, {"event": "complete"}, None)
    records = storage.RecordFile(epath.Path(run) / "metrics.jsonl", [])
    for step, split, top1 in (
        (4, "validation", 0.1),
        (4, "validation_ema", 0.6),
        (9, "validation", 0.2),
        (9, "validation_ema", 0.5),
        (4, "test", 0.3),
        (4, "test_ema", 0.4),  # of the best step, as the config may ask
    ):
        records.append({"step": step, "split": split, "top1": top1, "loss": 0.0})
    (row,) = sweep_table.rows(points, epath.Path(tmp_path))
    top1 = Metric("top1", ".2%", is_share=True)
    for split, value in (("validation", 0.6), ("test", 0.4)):
        spread = row.spread(split, top1)
        assert spread is not None
        assert spread.values == (value,)
