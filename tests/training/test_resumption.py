"""A run that goes on is the run that was stopped: settings, classes and images."""

import json
import pathlib
import shutil
from collections.abc import Callable

import PIL.Image
import pytest
from conftest import changed, tiny

from tests import samples
from vgg_flax import config as config_lib
from vgg_flax import errors
from vgg_flax.training import trainer


@pytest.fixture(scope="module")
def made(
    shallow: None, digits_dir: str, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """data/train and data/test with eight digits in each of classes a to d, and run/.

    The run has made one step on them.
    """
    folder = tmp_path_factory.mktemp("made")
    images, labels = samples.digits()
    for label in range(4):
        pixels = (images[labels == label][:16] * (255 / 16)).astype("uint8")
        for i, image in enumerate(pixels):
            place = folder / "data" / ("train", "test")[i % 2] / "abcd"[label]
            place.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(place / f"{i:02}.png")
    trainer.train_and_evaluate(one_step(tiny(digits_dir), folder), folder / "run")
    return folder


@pytest.fixture
def folder(made: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The same, to be changed; a run may find its data in another place."""
    return shutil.copytree(made, tmp_path / "made")


@pytest.fixture
def root(folder: pathlib.Path) -> pathlib.Path:
    return folder / "data"


@pytest.fixture
def config(bare_config: config_lib.Config, folder: pathlib.Path) -> config_lib.Config:
    return one_step(bare_config, folder)


def one_step(config: config_lib.Config, folder: pathlib.Path) -> config_lib.Config:
    return changed(
        config,
        model__variant="vgg8",
        model__head="gap",
        model__num_classes=4,
        data__name="folder",
        data__data_dir=str(folder / "data"),
        data__train_split="train",
        data__validation_split="",
        data__batch_size=8,
        data__eval_batch_size=32,
        optimizer__schedule="constant",
        num_steps=1,
    )


def rename_a_class(root: pathlib.Path) -> None:
    for split in ("train", "test"):
        (root / split / "b").rename(root / split / "z")


def swap_two_classes(root: pathlib.Path) -> None:
    for split in ("train", "test"):
        (root / split / "a").rename(root / split / "swap")
        (root / split / "b").rename(root / split / "a")
        (root / split / "swap").rename(root / split / "b")


def lose_an_image(root: pathlib.Path) -> None:
    (root / "train" / "c" / "04.png").unlink()


def rename_an_image(root: pathlib.Path) -> None:
    (root / "test" / "c" / "05.png").rename(root / "test" / "c" / "0.png")


def change_the_pixels(root: pathlib.Path) -> None:
    for path in sorted((root / "train").rglob("*.png")):
        path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename_a_class, "classes: 1 'b' -> 'c', 2 'c' -> 'd', 3 'd' -> 'z'; train"),
        (swap_two_classes, "train split: 32 examples -> 32, of other names or content"),
        (lose_an_image, "data: train split: 32 examples -> 31. Use"),
        (rename_an_image, "data: test split: 32 examples -> 32, of other names"),
        (change_the_pixels, "data: train split: 32 examples -> 32, of other names or"),
    ],
)
def test_other_data_stop_a_resume_and_are_listed(
    change: Callable[[pathlib.Path], None],
    said: str,
    config: config_lib.Config,
    root: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    workdir = folder / "run"
    change(root)
    with pytest.raises(errors.ConfigError, match="step 1 with other") as caught:
        trainer.train_and_evaluate(config, workdir)
    assert said in str(caught.value)
    assert "--config.resume_with_changes=true" in str(caught.value)
    assert json.loads((workdir / "config.json").read_text())["num_steps"] == 1


def test_changed_data_become_the_runs_own(
    config: config_lib.Config, root: pathlib.Path, folder: pathlib.Path
) -> None:
    rename_a_class(root)
    longer = changed(config, num_steps=2, resume_with_changes=True)
    assert trainer.train_and_evaluate(longer, folder / "run")["step"] == 2
    same = changed(longer, resume_with_changes=False)
    assert trainer.train_and_evaluate(same, folder / "run")["step"] == 2


def test_a_folder_may_be_moved(
    config: config_lib.Config, root: pathlib.Path, folder: pathlib.Path
) -> None:
    shutil.move(root, folder / "elsewhere")
    moved = changed(config, data__data_dir=str(folder / "elsewhere"))
    assert trainer.train_and_evaluate(moved, folder / "run")["step"] == 1


def test_a_class_that_a_split_lacks_is_told_and_the_rest_is_tested(
    config: config_lib.Config,
    root: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(root / "test" / "b")
    config = changed(config, data__validation_split="train[:8]")
    (root / "train" / "a" / "notes.txt").write_text("no digit")
    record = trainer.train_and_evaluate(config, tmp_path / "run")
    assert record["count"] == 24
    out = capsys.readouterr().out
    assert "folder/test: no image of 'b'\n" in out
    assert "folder/train, folder/train[:8]: left out in train: 1 .txt\n" in out
