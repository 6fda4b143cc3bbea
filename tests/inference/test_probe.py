"""`vgg-flax probe`: a linear model on features, against scikit-learn by hand."""

import json
import pathlib

import numpy as np
import pytest
import samples
from conftest import random_net, save_run

import vgg_flax
from vgg_flax import cli
from vgg_flax.inference import probe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("runs") / "random"
    return str(save_run(random_net("vgg11_bn"), path))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Crops of the temple and of the flower: 15 of each to train on, 5 to test."""
    folder = tmp_path_factory.mktemp("data")
    for name, photo in zip(("temple", "flower"), samples.pictures(), strict=True):
        for i in range(20):
            place = folder / ("train" if i < 15 else "test") / name
            place.mkdir(parents=True, exist_ok=True)
            left, top = 25 * i, 17 * i
            photo.crop((left, top, left + 90, top + 90)).save(place / f"{i:02}.png")
    return folder


def test_it_tells_two_photos_crops_apart(
    run: str, data: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As scikit-learn does with the features of each image alone."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    line = ["probe", run, "--data", str(data), "--layers", "pool5,relu6"]
    assert cli.main([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes"] == ["flower", "temple"] and told["count"] == 10
    net = vgg_flax.load(run)

    def rows(split: str) -> tuple[np.ndarray, list[str]]:
        paths = sorted((data / split).rglob("*.png"))
        views = np.stack([net.preprocessing.test_view(path) for path in paths])
        maps = net.features(views, ("pool5", "relu6"))
        pooled = [np.asarray(x).mean((1, 2)) for x in maps.values()]
        return np.concatenate(pooled, axis=1), [path.parent.name for path in paths]

    (x, labels), (test_x, truth) = rows("train"), rows("test")
    scale = StandardScaler().fit(x)
    model = LogisticRegression(C=told["strength"], max_iter=2000)
    model.fit(scale.transform(x), labels)
    assert told["right"] == (model.predict(scale.transform(test_x)) == truth).sum()
    assert told["right"] > 5
    low, high = told["interval"]
    assert low < told["right"] / 10 <= high <= 1
    assert cli.main(line) == 0
    printed = capsys.readouterr().out
    assert f"({told['right']}/10; 95% from {low:.1%} to {high:.1%})" in printed


def test_the_interval_is_wilsons() -> None:
    """81 of 263, the example of Newcombe 1998, table I: 0.2553 to 0.3662."""
    found = probe.Probed(("a", "b"), 1.0, 0.5, 81, 263).interval
    assert found == pytest.approx((0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "fc9"], "--layers: layer 'fc9' is none of this net"),
        (["--pool", "sum"], "--pool sum; expected mean, max, none"),
        (["--test-split", "validation"], "validation is not a folder"),
        (["--train-split", "train[:1]"], "one class only"),
    ],
)
def test_what_cannot_be_is_told(
    options: list[str],
    said: str,
    run: str,
    data: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["probe", run, "--data", str(data), *options]) == 1
    assert said in capsys.readouterr().err


def test_an_image_that_is_none_is_named(
    run: str, data: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = data / "test" / "temple" / "bad.png"
    bad.write_bytes(b"no image")
    assert cli.main(["probe", run, "--data", str(data)]) == 1
    assert "temple/bad.png: cannot decode" in capsys.readouterr().err
    bad.unlink()
