"""Sizes of the test view: given instead of the weights', kept, and checked."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from conftest import random_net, save_run
from weight_files import WRITE_NAMED

import vgg_flax
from vgg_flax import cli
from vgg_flax.inference import conversion, export
from vgg_flax.net import Net
from vgg_flax.weights import WeightsError
from vgg_flax.weights.lineages import layouts, mapping


def sizes(net: Net) -> tuple[int, int]:
    return net.preprocessing.test_scale, net.preprocessing.crop_size


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pathlib.Path, pathlib.Path]:
    """One net for 32 pixels: a run whose card has scale 36 and crop 32, and a file.

    The file is in torchvision's names, as somebody else saves it.
    """
    folder, net = tmp_path_factory.mktemp("sizes"), random_net("vgg11")
    layout = layouts.BY_NAME["torchvision"]
    tensors = mapping.to_tensors(net.variables, net.model, layout, bgr=False)
    WRITE_NAMED["torch_zip"](folder / "cifar.pth", tensors)
    return save_run(net, folder / "run"), folder / "cifar.pth"


@pytest.fixture
def run(saved: tuple[pathlib.Path, pathlib.Path]) -> pathlib.Path:
    return saved[0]


@pytest.fixture
def cifar(saved: tuple[pathlib.Path, pathlib.Path]) -> pathlib.Path:
    return saved[1]


def test_a_net_for_32_pixels_sees_them_as_they_are(cifar: pathlib.Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    view = vgg_flax.load(cifar).preprocessing.test_view(image)
    np.testing.assert_array_equal(view, image)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (36, 32)),
        ({"crop_size": 32}, (36, 32)),
        ({"crop_size": 64}, (64, 64)),
        ({"test_scale": 40}, (40, 32)),
        ({"test_scale": 80, "crop_size": 64}, (80, 64)),
    ],
    ids=str,
)
def test_given_sizes_are_taken_instead_of_a_cards(
    given: dict[str, Any],
    expected: tuple[int, int],
    run: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    assert sizes(vgg_flax.load(run, **given)) == expected
    own = tmp_path / "own.safetensors"
    conversion.save(vgg_flax.load(run), own)
    assert sizes(vgg_flax.load(own, **given)) == expected


@pytest.mark.parametrize(
    ("format", "target"),
    [
        (None, "again"),
        (None, "again.safetensors"),
        ("timm", "again.safetensors"),
        (None, "again.h5"),
    ],
)
def test_given_sizes_are_kept(
    format: str | None, target: str, cifar: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    net = vgg_flax.load(cifar, crop_size=48, test_scale=56)
    said = conversion.save(net, tmp_path / target, format)
    again = vgg_flax.load(tmp_path / target)
    assert again.preprocessing == net.preprocessing
    assert sizes(again) == (56, 48)
    if not target.endswith("again"):
        assert "test_scale=56, crop_size=48" in said or "scale 56, crop 48" in said
    assert sizes(vgg_flax.load(tmp_path / target, crop_size=32)) == (32, 32)


def test_an_exported_net_has_the_given_sizes(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    net = vgg_flax.load(run, crop_size=64)
    export.save(net, tmp_path / "net.jax", ("cpu",))
    about = json.loads((tmp_path / "net.jax.json").read_text())["preprocessing"]
    assert (about["test_scale"], about["crop_size"]) == (64, 64)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"crop_size": 0}, r"crop_size=0 \(--crop-size\); expected a whole number"),
        ({"test_scale": -1}, r"test_scale=-1 \(--test-scale\); expected a whole"),
        ({"crop_size": 32.0}, "crop_size=32.0 .* pixels above 0, such as 224"),
        ({"test_scale": "64"}, "test_scale='64'"),
        ({"crop_size": True}, "crop_size=True"),
        ({"crop_size": 31}, r"crop_size=31 .* can take; expected at least 32 pixels"),
        (
            {"crop_size": 64, "test_scale": 48},
            r"crop_size=64 .* larger than test_scale=48 .* raise that to 64, or lower",
        ),
        ({"test_scale": 31}, r"crop_size=32 .* larger than test_scale=31 "),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused(
    given: Any, said: str, saved: tuple[pathlib.Path, pathlib.Path]
) -> None:
    for source in saved:
        with pytest.raises(WeightsError, match=said):
            vgg_flax.load(source, **given)


def test_a_crop_below_fc6s_window_is_refused(tmp_path: pathlib.Path) -> None:
    net = random_net("vgg11", fc6_window=2)
    save_run(net, tmp_path / "run")
    with pytest.raises(WeightsError, match="at least 64 pixels"):
        vgg_flax.load(tmp_path / "run", crop_size=63, test_scale=63)


def test_the_commands_take_sizes_and_tell_them(
    run: pathlib.Path,
    cifar: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = str(tmp_path / "converted")
    options = ["--crop-size", "48", "--test-scale=56"]
    assert cli.main(["convert", str(cifar), target, *options]) == 0
    assert "; test scale 56, crop 48\n" in capsys.readouterr().err
    assert sizes(vgg_flax.load(target)) == (56, 48)
    assert cli.main(["describe", str(run), "--crop-size=64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"][1:3] == [64, 64]
    assert cli.main(["describe", "vgg11", "--crop-size=64"]) == 1
    assert "error: --crop-size 64 is of one file or run" in capsys.readouterr().err
    two = ["evaluate", str(run), str(run), "--data", "x", "--test-scale=64"]
    assert cli.main([*two, f"--output={tmp_path}"]) == 1
    assert "--test-scale 64 is of one file or run" in capsys.readouterr().err
    assert cli.main(["predict", str(run), "x.png", "--crop-size=0"]) == 1
    assert "crop_size=0 (--crop-size); expected" in capsys.readouterr().err
