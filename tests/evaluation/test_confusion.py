"""The confusion matrix is scikit-learn's, and is drawn by `vgg-flax evaluate`."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest
import samples
from conftest import random_net, save_run
from sklearn.metrics import confusion_matrix

import vgg_flax
from vgg_flax import cli
from vgg_flax.evaluation import confusion


def outcome(labels: list[int], guess: int) -> dict:
    return {"labels": labels, "experiments": [{"classes": [guess, 0, 1]}]}


def test_it_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    truth, guesses = random.integers(0, 5, (2, 200))
    images = [outcome([int(t)], int(g)) for t, g in zip(truth, guesses, strict=True)]
    found = confusion.matrix(images, range(5))
    np.testing.assert_array_equal(found, confusion_matrix(truth, guesses))


def test_some_classes_and_several_labels() -> None:
    """Of two right classes the one it was taken for, or else the first."""
    images = [outcome([7], 9), outcome([9, 7], 7), outcome([7, 9], 4), outcome([4], 4)]
    found = confusion.matrix(images, (4, 7, 9))
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 1, 1], [0, 0, 0]])


def test_the_command_draws_it(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("flower", "none", "temple")
    net = random_net("vgg11", num_classes=3).replace(class_names=names)
    run = save_run(net, tmp_path / "run")
    for name, photo in zip(("temple", "flower"), samples.pictures(), strict=True):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            crop = photo.crop((20 * i, 10 * i, 20 * i + 80, 10 * i + 80))
            crop.save(tmp_path / "data" / name / f"{i}.png")
    picture = tmp_path / "pictures" / "confusion.png"
    line = ["evaluate", str(run), "--data", str(tmp_path / "data")]
    line += ["--output", str(tmp_path / "result.json")]
    assert cli.main([*line, "--confusion", str(picture)]) == 0
    drawn = np.asarray(PIL.Image.open(picture))
    assert drawn.shape[0] > 400 and len(np.unique(drawn)) > 20
    result = json.loads((tmp_path / "result.json").read_text())
    paths = sorted((tmp_path / "data").rglob("*.png"))
    views = [net.preprocessing.test_view(path) for path in paths]
    guesses = vgg_flax.load(run)(np.stack(views)).argmax(1)
    right = sum(names[g] == p.parent.name for g, p in zip(guesses, paths, strict=True))
    assert result["experiments"][0]["top1_count"] == right
    for target, said in (
        ("x.jpg", "expected a name in .png"),
        ("http://x/y.png", "--confusion starts with http"),
    ):
        assert cli.main([*line, "--confusion", target]) == 1
        assert said in capsys.readouterr().err


def test_a_thousand_classes_have_no_room() -> None:
    with pytest.raises(confusion.ConfigError, match="1000 classes have no room"):
        confusion.check(pathlib.Path("x.png"), 1000)  # pyright: ignore
