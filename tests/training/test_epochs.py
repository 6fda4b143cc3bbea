"""Epochs are counted by the examples seen, whatever sizes the batches had."""

import json
import math
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
from conftest import changed

from tests import samples
from vgg_flax import config as config_lib
from vgg_flax.runs import log
from vgg_flax.runs.leaves import Checkpoint
from vgg_flax.training import resumption, schedules, trainer
from vgg_flax.training.job import Job
from vgg_flax.training.plan import Plan

EXAMPLES = 40


@pytest.fixture
def config(bare_config: config_lib.Config, tmp_path: pathlib.Path) -> config_lib.Config:
    """Five steps of eight of 40 digits an epoch; six epochs, a validation in each."""
    images, labels = samples.digits()
    for label in range(2):
        pixels = (images[labels == label][:24] * (255 / 16)).astype("uint8")
        for i, image in enumerate(pixels):
            split = "train" if i < EXAMPLES // 2 else "test"
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(folder / f"{i:02}.png")
    return changed(
        bare_config,
        model__num_classes=2,
        data__name="folder",
        data__data_dir=str(tmp_path / "data"),
        data__train_split="train",
        data__validation_split="test",
        data__batch_size=8,
        data__eval_batch_size=8,
        optimizer__schedule="step",
        optimizer__learning_rate=0.01,
        optimizer__decay_epochs=(2.0, 4.0),
        optimizer__decay_factor=0.1,
        num_epochs=6.0,
        eval_every_epochs=1.0,
        log_every_steps=1,
        checkpoint_every_steps=1,
        resume_with_changes=True,
    )


def test_where_a_plan_ends_it_ends_at_every_later_start() -> None:
    """Also after several sizes, at an end that floating point would round away."""
    plan = Plan.of(sized(64, 10.0), 50_000)
    plan = Plan.of(sized(48, 10.0), 50_000, 3497, plan.examples_at(3497))
    assert plan.total_steps == 3497 + -(-(500_000 - 3497 * 64) // 48)
    random = np.random.default_rng(0)
    for _ in range(2000):
        examples, epochs = (
            int(random.integers(10, 60_000)),
            float(random.integers(1, 9)),
        )
        step, plan = 0, Plan.of(sized(32, epochs), examples)
        for size in random.integers(1, 300, 3).tolist():
            step = int(random.integers(step, plan.total_steps + 1))
            plan = Plan.of(sized(size, epochs), examples, step, plan.examples_at(step))
            end = plan.total_steps
            again = Plan.of(sized(size, epochs), examples, end, plan.examples_at(end))
            assert again.total_steps == end
            step = int(random.integers(step, end + 1))
            later = Plan.of(sized(size, epochs), examples, step, plan.examples_at(step))
            assert later.total_steps == end


def sized(batch_size: int, epochs: float) -> config_lib.Config:
    data = config_lib.DataConfig(batch_size=batch_size)
    return config_lib.Config(data=data, num_epochs=epochs)


def records(workdir: pathlib.Path, split: str) -> list[dict[str, Any]]:
    return [r for r in log.read_records(workdir) if r["split"] == split]


class Stopped(Exception):
    """As by a kill behind a step."""


def train_until(config: config_lib.Config, workdir: pathlib.Path, last: int) -> None:
    """Trains from where the run stands to the step `last`."""

    def after_step(step: int) -> None:
        if step == last:
            run.saver.wait()
            raise Stopped

    with pytest.raises(Stopped), trainer.open_run(config, workdir) as run:
        run.train(after_step)


@pytest.mark.slow  # three batch sizes are three steps to compile
def test_a_run_goes_on_with_other_batch_sizes_in_the_same_epochs(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    train_until(config, workdir, 7)  # 56 examples
    train_until(changed(config, data__batch_size=16), workdir, 12)  # 80 more
    # The fourth start has the same devices' share in other pieces, which is no change.
    pieces = {"optimizer__accumulation_steps": 3}
    last = changed(config, data__batch_size=24, **pieces)
    assert trainer.train_and_evaluate(last, workdir)["step"] == 17

    seen = np.cumsum([8] * 7 + [16] * 5 + [24] * 5)
    assert seen[-2] < 6 * EXAMPLES <= seen[-1]
    trained = records(workdir, "train")
    assert [r["count"] for r in trained] == np.diff(seen, prepend=0).tolist()
    np.testing.assert_allclose([r["epoch"] for r in trained], seen / EXAMPLES)
    before = [0, *seen[:-1]]
    rates = [0.01 * 0.1 ** sum(n >= e * EXAMPLES for e in (2, 4)) for n in before]
    np.testing.assert_allclose([r["learning_rate"] for r in trained], rates)
    due = [i + 1 for i in range(17) if seen[i] // 40 > (seen[i - 1] if i else 0) // 40]
    assert [r["step"] for r in records(workdir, "validation")] == due
    saved = json.loads((workdir / "config.json").read_text())["data"]["batch_size"]
    assert saved == 24


def test_an_epoch_has_each_example_once_though_the_batch_size_changes(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    def images(size: int, step: int, seen: int, count: int) -> list[bytes]:
        job = Job.prepare(changed(config, data__batch_size=size), tmp_path / "run")
        stream = job.resumed(step, seen).train_batches(step)
        return [x.tobytes() for _ in range(count) for x in next(stream)["image"]]

    epoch = images(8, 0, 0, 5)
    assert images(8, 0, 0, 2) + images(24, 2, 16, 1) == epoch
    assert images(16, 0, 0, 1) + images(8, 1, 16, 3) == epoch


def test_a_complete_run_stays_complete_with_another_batch_size(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    config = changed(config, num_epochs=0.4)
    assert trainer.train_and_evaluate(config, tmp_path / "run")["step"] == 2
    for size in (16, 8):
        again = changed(config, data__batch_size=size)
        assert trainer.train_and_evaluate(again, tmp_path / "run")["step"] == 2


def test_a_run_past_the_end_that_is_asked_for_says_so(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    job = Job.prepare(changed(config, num_epochs=0.4), tmp_path)
    assert not [line for line in job.introduction(0) if "asks for" in line]
    late = job.resumed(7, 7 * 8)
    assert late.plan.total_steps == 7
    told = "asks for 2 steps, and the run is at step 7: nothing more is trained"
    assert [line for line in late.introduction(7) if told in line]


def test_a_split_that_grew_is_gone_on_with_in_the_same_epoch(
    config: config_lib.Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_until(config, tmp_path / "run", 7)
    for path in sorted((tmp_path / "data" / "train" / "0").iterdir()):
        path.with_name(f"more{path.name}").write_bytes(path.read_bytes())
    train_until(config, tmp_path / "run", 8)
    assert "had 40 examples and has 60: the run goes on at epoch 1.4" in (
        capsys.readouterr().err
    )
    epochs = [r["epoch"] for r in records(tmp_path / "run", "train")]
    np.testing.assert_allclose(epochs[-2:], [56 / 40, 56 / 40 + 8 / 60])


@pytest.mark.parametrize("size", [8, 16])
def test_a_step_of_before_has_seen_as_much_as_its_config_says(
    size: int,
    config: config_lib.Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = Job.prepare(config, tmp_path / "run")
    earlier = json.loads(config_lib.to_json(changed(config, data__batch_size=size)))
    saved = Checkpoint(7, {}, {"config": earlier})
    assert resumption.examples_seen(saved, job) == 7 * size
    assert f"taken is 7 x {size}, its batch size" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["constant", "cosine", "step"])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_the_rate_follows_the_epoch_and_the_run_ends_with_it(
    name: str, size: int
) -> None:
    config = config_lib.Config(num_epochs=10.0)
    config.data.batch_size = size
    config.optimizer = config_lib.OptimizerConfig(
        learning_rate=1.0, schedule=name, warmup_epochs=1.0, decay_epochs=(5.0, 8.0)
    )
    plan = Plan.of(config, 6400, 150, 150 * 32)  # steps of 32 so far: epoch 0.75
    assert plan.total_steps == 150 + math.ceil((64000 - 4800) / size)
    rate = schedules.make_schedule(
        config.optimizer, plan.steps_per_epoch, plan.total_steps, plan.shift
    )
    for step in range(150, plan.total_steps, 7):
        epoch = (4800 + (step - 150) * size) / 6400
        assert plan.epoch_at(step) == pytest.approx(epoch)
        if epoch < 1:
            expected = epoch
        elif name == "cosine":
            expected = (1 + math.cos(math.pi * (epoch - 1) / 9)) / 2
        else:
            decays = 0 if name == "constant" else sum(epoch >= e for e in (5, 8))
            expected = config.optimizer.decay_factor**decays
        assert float(rate(step)) == pytest.approx(expected, abs=0.02), epoch
