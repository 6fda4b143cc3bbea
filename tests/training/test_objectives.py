"""Another objective than classes: trained, validated, saved, resumed, refused."""

import json
import pathlib

import numpy as np
import pytest
from conftest import changed

import vgg_flax
from tests import boxes
from vgg_flax import cli, errors
from vgg_flax import metrics as metrics_lib
from vgg_flax.config import Config
from vgg_flax.metrics import Metric
from vgg_flax.runs import checkpoint, log
from vgg_flax.training import objectives, trainer
from vgg_flax.training.objectives import Objective


@pytest.fixture(scope="module")
def recipe(shallow: None, digits_dir: str) -> Config:
    return changed(
        boxes.get_config(), data__data_dir=digits_dir, model__variant="vgg8_bn"
    )


@pytest.fixture(scope="module")
def workdir(recipe: Config, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A whole run: 13 steps and as many again after a resumption."""
    workdir = tmp_path_factory.mktemp("boxes")
    half = changed(recipe, num_epochs=1.0)
    trainer.train_and_evaluate(half, workdir, boxes.BOXES)
    longer = changed(recipe, resume_with_changes=True)
    trainer.train_and_evaluate(longer, workdir, boxes.BOXES)
    return workdir


def test_the_box_of_an_image_counted_by_hand() -> None:
    images = np.zeros((1, 10, 10, 1), np.uint8)
    images[0, 2:5, 3:9] = 200
    np.testing.assert_allclose(boxes.boxes(images)[0], [0.3, 0.2, 0.9, 0.5], atol=1e-6)


def test_it_learns_and_its_own_metrics_are_told(
    workdir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = log.read_records(workdir)
    train = [r for r in records if r["split"] == "train"]
    assert train[-1]["loss"] < train[0]["loss"] / 3
    for record in records:
        assert {"loss", "side", "close", "count"} <= set(record)
        assert not {"top1", "top5"} & set(record)
    test = records[-1]
    assert (test["split"], test["count"]) == ("test", 360)
    assert test["close"] == test["close_count"] / 360
    line = log.result_line(test, boxes.BOXES.metrics, workdir)
    assert f"test side {test['side']:.3f}, close {test['close']:.1%} (" in line
    assert (workdir / "curves.png").stat().st_size > 10_000
    events = (workdir / "events.jsonl").read_text().splitlines()
    told = [e for e in map(json.loads, events) if e["event"] == "evaluation_finished"]
    assert all("side" in event and "top1" not in event for event in told)


def test_the_best_has_the_smallest_error(workdir: pathlib.Path) -> None:
    validations = [r for r in log.read_records(workdir) if r["split"] == "validation"]
    with checkpoint.Checkpoints(workdir / "checkpoints", keep=9) as checkpoints:
        kept = [r for r in validations if r["step"] in checkpoints.steps()]
        best = min(validations, key=lambda r: r["side"])
        assert best in kept
        assert checkpoints.best_step() == best["step"]
    assert vgg_flax.load(workdir, "best").model.num_classes == 4


def test_the_plateau_counts_validations_without_a_smaller_error(
    workdir: pathlib.Path,
) -> None:
    validations = [r for r in log.read_records(workdir) if r["split"] == "validation"]
    with checkpoint.Checkpoints(workdir / "checkpoints", keep=9) as checkpoints:
        leaves = checkpoints.read(checkpoints.steps()[-1]).leaves
    smallest = min(np.float32(r["side"]) for r in validations)
    assert leaves["plateau/best"] == -smallest


def test_a_run_is_not_resumed_under_another_objective(
    workdir: pathlib.Path, recipe: Config
) -> None:
    other = changed(
        recipe, objective="classification", model__num_classes=10, num_epochs=3.0
    )
    other = changed(other, resume_with_changes=True)
    with pytest.raises(errors.ConfigError, match="'boxes', and now has 'classific"):
        trainer.train_and_evaluate(other, workdir)


def test_an_objective_and_its_name_in_the_config_must_agree(
    recipe: Config, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(errors.ConfigError, match=r"config\.objective='boxes'.*recipe"):
        trainer.train_and_evaluate(recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_needs_classes_refuses_it_in_one_line(
    workdir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "0" / "digit.png"
    image.parent.mkdir()
    image.write_bytes(b"")
    for command in (
        ["predict", str(workdir), str(image)],
        ["evaluate", str(workdir), "--data", str(tmp_path), "--output", str(tmp_path)],
    ):
        assert cli.main(command) == 1
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if "'boxes'" in line] == lines[-1:]


def _sums(outputs: object, batch: object) -> dict[str, object]:
    return {"loss": 0, "count": 1}


@pytest.mark.parametrize(
    "metrics",
    [
        (),
        (Metric("loss"),),
        (Metric("loss", decides=True), Metric("other", decides=True)),
        (Metric("other", decides=True), Metric("loss")),
        (Metric("loss", decides=True), Metric("loss")),
    ],
)
def test_metrics_that_cannot_be(metrics: tuple[Metric, ...]) -> None:
    with pytest.raises(errors.ConfigError, match="'loss' first, and one that decides"):
        Objective("mine", _sums, metrics)


def test_sums_must_be_those_of_the_metrics() -> None:
    mine = Objective("mine", _sums, (Metric("loss", decides=True), Metric("more")))
    with pytest.raises(errors.ConfigError, match=r"\['count', 'loss', 'more'\]"):
        mine(None, {})


def test_metrics_by_declaration() -> None:
    sums = {"loss": 3.0, "top1": 1, "top5": 2, "count": 4}
    metrics = objectives.CLASSIFICATION.metrics
    assert metrics_lib.means(metrics, sums) == {"loss": 0.75, "top1": 0.25, "top5": 0.5}
    assert metrics_lib.counts(metrics, sums) == {
        "count": 4,
        "top1_count": 1,
        "top5_count": 2,
    }
    assert metrics_lib.deciding(metrics).score(0.25) == ("top1", 0.25)
    assert metrics_lib.deciding(boxes.BOXES.metrics).score(0.2) == (
        "negative_side",
        -0.2,
    )


def test_a_recipe_names_its_objective() -> None:
    found = objectives.of_recipe(boxes.__file__)
    assert found.name == boxes.BOXES.name == boxes.get_config().objective
    default = pathlib.Path(boxes.__file__).parents[1] / "configs" / "default.py"
    assert objectives.of_recipe(default) is objectives.CLASSIFICATION
