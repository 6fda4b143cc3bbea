"""The average of the params; early stopping, the best step's test, a teacher."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import changed, random_net, save_run

import vgg_flax
from tests import boxes
from vgg_flax import cli, errors
from vgg_flax.config import AveragingConfig, Config
from vgg_flax.data import batches as batches_lib
from vgg_flax.data import splits
from vgg_flax.data.batches import Shard
from vgg_flax.runs import checkpoint, log
from vgg_flax.training import averaging, distillation, resumption, trainer

CLASSES = 10


def updated(config: AveragingConfig, values: list[float]) -> list[float]:
    """The averages of a param that has these values after steps 1, 2, ..."""
    average = averaging.start(config, {"w": jnp.float32(0)}, {})
    found = []
    for step, value in enumerate(values, start=1):
        params = {"w": jnp.float32(value)}
        average = averaging.update(config, average, params, {}, jnp.int32(step))
        found.append(float(average["params"]["w"]))
    return found


def test_the_average_of_a_constant_is_the_constant() -> None:
    config = AveragingConfig(decay=0.97, every_steps=1)
    start = {"w": jnp.float32(0.1)}
    average = averaging.start(config, start, start)
    for step in range(1, 50):
        average = averaging.update(config, average, start, start, jnp.int32(step))
    assert float(average["params"]["w"]) == float(np.float32(0.1))
    assert float(average["batch_stats"]["w"]) == float(np.float32(0.1))


def test_the_average_is_optaxs_with_a_share_that_grows() -> None:
    values = [1.0, 3.0, -2.0, 0.5, 4.0]
    found = updated(AveragingConfig(decay=0.3, every_steps=1), values)
    expected: Any = jnp.float32(0)
    for step, value in enumerate(values, start=1):
        kept = min(0.3, (1 + step) / (10 + step))
        expected = optax.incremental_update(jnp.float32(value), expected, 1 - kept)
        assert found[step - 1] == pytest.approx(float(expected), rel=1e-6)


def test_every_few_steps_it_moves_as_far_as_in_so_many() -> None:
    values = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    found = updated(AveragingConfig(decay=0.1, every_steps=4), values)
    assert found[:3] == [0.0] * 3
    assert found[3:7] == [pytest.approx(1 - 0.1**4)] * 4
    assert found[7] == pytest.approx(2 - 0.1**4 * (2 - found[3]))


@pytest.fixture(scope="module")
def recipe(shallow: None, digits_dir: str) -> Config:
    return changed(
        boxes.get_config(),
        objective="classification",
        data__data_dir=digits_dir,
        model__variant="vgg8_bn",
        model__num_classes=CLASSES,
        optimizer__schedule="constant",
        num_epochs=90.0,
        num_steps=8,
    )


@pytest.fixture(scope="module")
def workdir(recipe: Config, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run with an average, stopped at step 4 and resumed."""
    workdir = tmp_path_factory.mktemp("averaged")
    config = changed(recipe, averaging__decay=0.9, averaging__every_steps=1)
    trainer.train_and_evaluate(changed(config, num_steps=4), workdir)
    trainer.train_and_evaluate(changed(config, resume_with_changes=True), workdir)
    return workdir


@pytest.mark.slow
def test_the_average_is_validated_beside_saved_and_loaded(
    recipe: Config, workdir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = {r["split"]: r for r in log.read_records(workdir)}
    assert records["test"]["loss"] != records["test_ema"]["loss"]
    last, average = vgg_flax.load(workdir), vgg_flax.load(workdir, ema=True)
    assert last.sha256 != average.sha256
    assert jax.tree.structure(last) == jax.tree.structure(average)
    distances = jax.tree.map(lambda a, b: float(abs(a - b).max()), last, average)
    assert 0 < max(jax.tree.leaves(distances)) < 1
    data = changed(recipe).data
    split = splits.open_split(data, data.test_split, CLASSES)
    batches = list(batches_lib.eval_batches(data, split, shard=Shard()))
    for net, name in ((last, "test"), (average, "test_ema")):
        hits = 0
        for batch in batches:
            right = net(batch["image"]).argmax(axis=-1) == batch["label"]
            hits += int((right & batch["mask"]).sum())
        assert hits == records[name]["top1_count"]
    capsys.readouterr()
    assert cli.main(["describe", str(workdir), "--ema"]) == 0
    assert average.sha256[:16] in "".join(capsys.readouterr())
    with pytest.raises(errors.VGGFlaxError, match="--ema"):
        vgg_flax.load(workdir / "metrics.jsonl", ema=True)


@pytest.mark.slow
@pytest.mark.parametrize("ema", [False, True])
def test_an_average_is_what_a_run_starts_from_and_what_teaches(
    recipe: Config, workdir: pathlib.Path, ema: bool
) -> None:
    wanted = vgg_flax.load(workdir, ema=ema).sha256
    start = changed(recipe, init_from=str(workdir), init_ema=ema)
    net = resumption.load_weights(start)
    assert net and net.sha256 == wanted
    settings = {"distillation__teacher": str(workdir), "distillation__teacher_ema": ema}
    teacher = distillation.load(changed(recipe, **settings), CLASSES)
    assert teacher and teacher.sha256 == wanted


@pytest.mark.slow
def test_a_run_goes_on_with_an_average_from_here_and_without(
    recipe: Config, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.train_and_evaluate(changed(recipe, num_steps=2), tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="has no average"):
        vgg_flax.load(tmp_path, ema=True)
    more = changed(recipe, num_steps=3, resume_with_changes=True)
    config = changed(more, averaging__decay=0.5, averaging__every_steps=1)
    trainer.train_and_evaluate(config, tmp_path)
    assert "conv1_1, conv2_1" in capsys.readouterr().err
    before, after = vgg_flax.load(tmp_path, 2), vgg_flax.load(tmp_path, 3)
    kept = 4 / 13  # of step 3
    for path, average in jax.tree.leaves_with_path(
        vgg_flax.load(tmp_path, 3, ema=True).variables["params"]
    ):
        old, new = (
            jax.tree.leaves_with_path(net.variables["params"])
            for net in (before, after)
        )
        expected = kept * dict(old)[path] + (1 - kept) * dict(new)[path]
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
    trainer.train_and_evaluate(changed(more, num_steps=4), tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="has no average"):
        vgg_flax.load(tmp_path, ema=True)


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_early_and_stays_ended(
    recipe: Config, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(
        recipe,
        model__variant="vgg8",
        optimizer__learning_rate=0.0,
        num_steps=12,
        eval_every_epochs=0.05,
        early_stopping_patience=2,
    )
    record = trainer.train_and_evaluate(config, tmp_path)
    validated = [r for r in log.read_records(tmp_path) if r["split"] == "validation"]
    assert len(validated) == 3
    assert record["step"] == validated[-1]["step"] < 12
    assert "2 validation(s) without a better top1" in capsys.readouterr().out
    again = trainer.train_and_evaluate(config, tmp_path)
    assert {**again, "time": 0} == {**record, "time": 0}
    longer = changed(config, early_stopping_patience=0)
    assert trainer.train_and_evaluate(longer, tmp_path)["step"] == 12


@pytest.mark.slow
def test_the_best_steps_test_is_the_last_line(
    recipe: Config, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = changed(recipe, num_steps=16, optimizer__learning_rate=0.1, test_step="best")
    trainer.train_and_evaluate(good, tmp_path)
    bad = changed(
        good, num_steps=18, optimizer__learning_rate=3.0, resume_with_changes=True
    )
    record = trainer.train_and_evaluate(bad, tmp_path)
    validated = [r for r in log.read_records(tmp_path) if r["split"] == "validation"]
    best = max(validated, key=lambda r: r["top1"])["step"]
    assert best <= 16 < validated[-1]["step"] == 18
    assert record["step"] == best
    assert f"step {best}, {tmp_path}" in capsys.readouterr().out.splitlines()[-1]
    last = trainer.train_and_evaluate(changed(bad, test_step="last"), tmp_path)
    assert last["step"] == 18
    assert last["top1"] < record["top1"]


@pytest.fixture(scope="module")
def teacher(shallow: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of a net without BatchNorm and dropout, for grey images."""
    net = random_net("vgg8", in_channels=1, head="gap", num_classes=CLASSES)
    return str(save_run(net, tmp_path_factory.mktemp("teacher")))


def taught(recipe: Config, teacher: str, **fields: Any) -> Config:
    return changed(
        recipe,
        model__variant="vgg8",
        model__head="gap",
        model__width_multiplier=1 / 16,
        optimizer__weight_decay=0.0,
        distillation__teacher=teacher,
        distillation__weight=1.0,
        data__mean=(0.5,),
        data__std=(0.5,),
        log_every_steps=1,
        **fields,
    )


def test_a_net_that_is_its_own_teacher_learns_nothing(
    recipe: Config, teacher: str, tmp_path: pathlib.Path
) -> None:
    net = vgg_flax.load(teacher)
    pixels = net.preprocessing
    config = taught(recipe, teacher, num_steps=2, init_from=teacher)
    config = changed(config, data__mean=pixels.mean, data__std=pixels.std)
    trainer.train_and_evaluate(config, tmp_path)
    records = log.read_records(tmp_path)
    assert all(abs(r["loss"]) < 1e-6 for r in records if r["split"] == "train")
    after = vgg_flax.load(tmp_path)
    for ours, theirs in zip(*map(jax.tree.leaves, (after, net)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_net_learns_what_its_teacher_says(
    recipe: Config, teacher: str, tmp_path: pathlib.Path
) -> None:
    runs = {}
    for temperature in (1.0, 4.0):
        config = taught(recipe, teacher, distillation__temperature=temperature)
        workdir = tmp_path / str(temperature)
        trainer.train_and_evaluate(config, workdir)
        train = [r for r in log.read_records(workdir) if r["split"] == "train"]
        assert train[-1]["loss"] < train[0]["loss"]
        runs[temperature] = train[0]["loss"]
    assert runs[1.0] != runs[4.0]


def test_the_loss_is_torchs_divergence_times_the_square_of_the_temperature() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 7)).astype(np.float32)
    mask = np.array([True, True, False, True, True])
    ours = distillation.loss(
        jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(mask), 3.0
    )
    theirs = 9 * torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(student[mask]) / 3, dim=-1),
        torch.log_softmax(torch.tensor(teacher[mask]) / 3, dim=-1),
        reduction="sum",
        log_target=True,
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distillation__teacher": "no/such/run"}, "config.distillation.teacher"),
        (
            {"model__in_channels": 3, "data__mean": None, "data__std": None},
            "takes 1 channels, and the net that learns 3",
        ),
        ({"regularization__class_weights": (1.0, 2.0)}, "2 values for 10 classes"),
        ({"regularization__class_weights": (0.0,) * 10}, "not all of them 0"),
        (
            {"early_stopping_patience": 1, "data__validation_split": ""},
            "config.early_stopping_patience=1 watches the validation split",
        ),
        (
            {"test_step": "best", "data__validation_split": ""},
            "config.test_step='best' watches the validation split",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    recipe: Config,
    teacher: str,
    tmp_path: pathlib.Path,
    fields: dict[str, Any],
    message: str,
) -> None:
    config = changed(taught(recipe, teacher), **fields)
    with pytest.raises(errors.ConfigError, match=message):
        trainer.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_are_no_matter_of_another_objective(
    recipe: Config, tmp_path: pathlib.Path
) -> None:
    config = changed(
        recipe,
        objective=boxes.BOXES.name,
        model__num_classes=boxes.get_config().model.num_classes,
        regularization__mixup_alpha=0.2,
    )
    with pytest.raises(errors.ConfigError, match="is about the labels of classes"):
        trainer.train_and_evaluate(config, tmp_path / "run", boxes.BOXES)
