"""Training views whose side and S change by epoch (`data.*_by_epoch`)."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from conftest import changed, random_net, save_run

import vgg_flax
from tests import processes
from vgg_flax import config as config_lib
from vgg_flax.errors import ConfigError
from vgg_flax.runs import log
from vgg_flax.training import distillation, trainer
from vgg_flax.training.job import Job

SIDES = ((0.0, 32), (0.5, 64), (1.0, 48))


@pytest.fixture
def config(bare_config: config_lib.Config) -> config_lib.Config:
    """Four steps an epoch: two of 32 pixels, two of 64, two of 48."""
    return changed(
        bare_config,
        data__train_split="train[:100]",
        data__validation_split="",
        data__test_split="test[:64]",
        data__batch_size=32,
        data__eval_batch_size=64,
        data__train_view="paper",
        data__train_scale=(64, 72),
        data__crop_size_by_epoch=SIDES,
        optimizer__learning_rate=0.01,
        num_steps=6,
        log_every_steps=1,
        checkpoint_every_steps=1,
    )


def sides_of(job: Job, steps: int, start: int = 0) -> list[int]:
    stream = job.train_batches(start)
    return [next(stream)["image"].shape[1] for _ in range(steps)]


def told(job: Job, step: int) -> list[str]:
    return [line for line in job.introduction(step) if "training views" in line]


def test_what_training_sees_by_epoch() -> None:
    data = config_lib.DataConfig(
        crop_size_by_epoch=((2.0, 160), (5.0, 192)),
        train_scale_by_epoch=((5.0, 256, 512), (7.5, 384, 384)),
    )
    stages = config_lib.training_stages(data)
    assert [(e, d.crop_size, d.train_scale) for e, d in stages] == [
        (0.0, 224, (256, 256)),
        (2.0, 160, (256, 256)),
        (5.0, 192, (256, 512)),
        (7.5, 192, (384, 384)),
    ]
    assert config_lib.training_stages(config_lib.DataConfig()) == (
        (0.0, config_lib.DataConfig()),
    )


def test_a_stage_begins_with_the_first_batch_of_its_epoch(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    """100 examples are 3.125 steps: epoch 0.5 begins within step 2, 1.0 within 4."""
    job = Job.prepare(config, tmp_path)
    assert [first for first, _ in job.stages] == [0, 2, 4]
    assert sides_of(job, 6) == [32, 32, 64, 64, 48, 48]
    assert sides_of(job, 3, start=3) == [64, 48, 48]
    assert told(job, 0) == [
        "from step 0, epoch 0.0, on: training views of 32 pixels, S (64, 72)",
        "from step 2, epoch 0.6, on: training views of 64 pixels, S (64, 72)",
        "from step 4, epoch 1.3, on: training views of 48 pixels, S (64, 72)",
    ]
    short = Job.prepare(changed(config, num_steps=3), tmp_path)
    assert told(short, 0)[2].endswith(", which is never reached")
    # With batches of 8 from example 64 on, epoch 1.0 begins with example 104.
    resumed = Job.prepare(changed(config, data__batch_size=8), tmp_path).resumed(2, 64)
    assert sides_of(resumed, 7, start=2) == [64] * 5 + [48] * 2
    late = job.resumed(5, 5 * 32)
    assert sides_of(late, 2, start=5) == [48, 48]
    assert told(late, 5) == [
        "from step 5, epoch 1.6, on: training views of 48 pixels, S (64, 72)"
    ]
    one = changed(config, data__crop_size_by_epoch=((0.0, 48),))
    assert told(Job.prepare(one, tmp_path), 0) == [
        "from step 0, epoch 0.0, on: training views of 48 pixels, S (64, 72)"
    ]
    plain = changed(config, data__crop_size_by_epoch=())
    assert told(Job.prepare(plain, tmp_path), 0) == []


def test_each_stage_has_the_batches_of_a_run_of_its_settings(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    scales = ((0.0, 64, 64), (1.0, 50, 80))
    config = changed(config, data__train_scale_by_epoch=scales)
    found = Job.prepare(config, tmp_path).train_batches(0)
    for step, (side, scale) in enumerate(
        [(32, (64, 64))] * 2 + [(64, (64, 64))] * 2 + [(48, (50, 80))] * 2
    ):
        plain = changed(
            config,
            data__crop_size_by_epoch=(),
            data__train_scale_by_epoch=(),
            data__crop_size=side,
            data__test_scale=64,
            data__train_scale=scale,
        )
        expected = next(Job.prepare(plain, tmp_path).train_batches(step))
        for name, values in next(found).items():
            np.testing.assert_array_equal(values, expected[name], f"{step} {name}")


def test_a_run_of_three_sides_is_three_runs_that_go_on_with_another_side(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    config = changed(config, regularization__mixup_alpha=0.2, averaging__decay=0.9)
    trainer.train_and_evaluate(config, tmp_path / "whole")
    for side, last in ((32, 2), (64, 4), (48, 6)):
        part = changed(
            config,
            data__crop_size_by_epoch=(),
            data__crop_size=side,
            data__test_scale=64,
            num_steps=last,
            resume_with_changes=True,
        )
        trainer.train_and_evaluate(part, tmp_path / "parts")
    same_bits(tmp_path / "whole", tmp_path / "parts")
    kinds = [json.loads(x)["event"] for x in events(tmp_path / "whole")]
    assert kinds.count("compiled") == 3


@pytest.mark.slow  # the one before goes on between stages, too
@pytest.mark.parametrize("stops", [(2, 5), (1, 3, 4)])
def test_a_run_that_is_resumed_within_a_stage_or_between_two_has_the_same_bits(
    config: config_lib.Config, tmp_path: pathlib.Path, stops: tuple[int, ...]
) -> None:
    trainer.train_and_evaluate(config, tmp_path / "whole")
    for stop in stops:
        with (
            pytest.raises(Stopped),
            trainer.open_run(config, tmp_path / "parts") as run,
        ):
            run.train(lambda step, run=run, stop=stop: stop_at(run, step, stop))
    trainer.train_and_evaluate(config, tmp_path / "parts")
    same_bits(tmp_path / "whole", tmp_path / "parts")
    assert counts(tmp_path / "parts") == [32] * 6


@pytest.mark.slow  # three processes
def test_two_processes_change_sides_together(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    recipe = processes.write_recipe(config, tmp_path / "recipe.py")
    for name, count in (("one", 1), ("two", 2)):
        started = processes.start(tmp_path / name, [[recipe]] * count, devices=2)
        with processes.killed_at_the_end(started):
            ended = [processes.finish(process, 200) for process in started]
        assert [end.code for end in ended] == [0] * count, ended[0].err[-6000:]
    assert counts(tmp_path / "two") == [32] * 6
    same_bits(tmp_path / "one", tmp_path / "two")


class Stopped(Exception):
    """As by a kill behind a step."""


def stop_at(run: trainer.Run, step: int, last: int) -> None:
    if step == last:
        run.saver.wait()
        raise Stopped


def events(workdir: pathlib.Path) -> list[str]:
    return (workdir / "events.jsonl").read_text().splitlines()


def same_bits(one: pathlib.Path, other: pathlib.Path) -> None:
    assert processes.crcs(one, 6) == processes.crcs(other, 6)


def counts(workdir: pathlib.Path) -> list[int]:
    records = log.read_records(workdir)
    return [r["count"] for r in records if r["split"] == "train"]


def test_the_card_has_the_s_that_the_net_was_trained_at_last(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    scales = ((1.0, 64, 80),)
    config = changed(
        config, data__train_scale_by_epoch=scales, data__crop_size_by_epoch=()
    )
    trainer.train_and_evaluate(config, tmp_path / "run")
    assert vgg_flax.load(tmp_path / "run", 4).train_scale == (64, 72)
    assert vgg_flax.load(tmp_path / "run", 5).train_scale == (64, 80)
    assert vgg_flax.load(tmp_path / "run").preprocessing.crop_size == 32


def test_a_teacher_takes_the_smallest_views(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    net = random_net(
        "vgg8", in_channels=1, num_classes=10, fc6_window=2, fc_widths=(8, 8)
    )
    teacher = str(save_run(net, tmp_path / "teacher"))
    sides = ((0.0, 80), (1.0, 48))
    config = changed(
        config,
        distillation__teacher=teacher,
        data__train_scale=(80, 80),
        data__crop_size=96,
        data__crop_size_by_epoch=sides,
    )
    told = "images of 64 pixels or more, and training's smallest views have 48"
    with pytest.raises(ConfigError, match=told):
        distillation.load(config, 10)
    sides = ((0.0, 80), (1.0, 64))
    assert distillation.load(changed(config, data__crop_size_by_epoch=sides), 10)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_teacher_stays_when_the_side_changes(
    config: config_lib.Config, tmp_path: pathlib.Path, devices: int
) -> None:
    """Its arrays may be the loaded net's own, which no step may take for its output."""
    net = random_net("vgg8", in_channels=1, head="gap", num_classes=10)
    teacher = str(save_run(net, tmp_path / "teacher"))
    config = changed(config, distillation__teacher=teacher)
    recipe = processes.write_recipe(config, tmp_path / "recipe.py")
    (started,) = processes.start(tmp_path / "run", [[recipe]], devices=devices)
    ended = processes.finish(started, 200)
    assert ended.code == 0, ended.err[-6000:]
    assert counts(tmp_path / "run") == [32] * 6


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"data__crop_size_by_epoch": ((0.0, 32), (0.0, 48))},
            r"crop_size_by_epoch=\(\(0.0, 32\), \(0.0, 48\)\) begins at epochs "
            r"\[0.0, 0.0\]; expected each later",
        ),
        ({"data__crop_size_by_epoch": ((-1.0, 32),)}, r"\[-1.0\]; expected each later"),
        (
            {"data__train_scale_by_epoch": ((float("nan"), 64, 64),)},
            r"epochs \[nan\]; expected",
        ),
        ({"data__crop_size_by_epoch": ((1.0, 0),)}, "a size below 1; expected pixels"),
        ({"data__crop_size_by_epoch": ((1.0, 48.5),)}, r"expected tuple\[tuple"),
        ({"data__crop_size_by_epoch": (1.0, 48)}, "a single row ends with a comma"),
        (
            {"data__crop_size_by_epoch": ((1.0, 80),)},
            r"S of \(64, 72\) from epoch 1 on is smaller than that epoch's side of 80 "
            r".*; raise S to 80, or lower the side",
        ),
        (
            {"data__train_scale_by_epoch": ((2.0, 80, 70),)},
            r"train_scale_by_epoch, epoch 2:=\(80, 70\); expected \(low, high\)",
        ),
        (
            {
                "data__train_view": "resized_crop",
                "data__train_scale_by_epoch": ((2.0, 64, 72),),
            },
            "train_view='resized_crop' has no S; leave it out",
        ),
        (
            {"data__crop_size_by_epoch": ((1.0, 31),)},
            "crop_size_by_epoch, epoch 1:=31 is smaller than the net can take, 32",
        ),
    ],
)
def test_views_that_cannot_be_made_are_told_before_anything_runs(
    config: config_lib.Config,
    tmp_path: pathlib.Path,
    fields: dict[str, Any],
    told: str,
) -> None:
    with pytest.raises(ConfigError, match=told):
        Job.prepare(changed(config, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()
