"""The programs in examples/, small: each does what its first line says."""

import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import samples
from conftest import random_net, save_run
from documents import ROOT

from vgg_flax.weights.lineages import layouts

pytestmark = pytest.mark.slow


def test_style_transfer_goes_down_and_draws_a_strip(tmp_path: pathlib.Path) -> None:
    """With a random net, whose features have styles too."""
    net = random_net("vgg16").replace(preprocessing=layouts.TORCHVISION)
    run = save_run(net, tmp_path / "run")
    for name, picture in zip(("photo", "painting"), samples.pictures(), strict=True):
        picture.crop((0, 0, 300, 200)).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("photo", "painting", "out")]
    command = [sys.executable, str(ROOT / "examples" / "style_transfer.py"), *paths]
    command += [f"--weights={run}", "--size=48", "--steps=20"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.splitlines()[-1].split(" ")[1:]
    assert float(after) < 0.8 * float(before)
    strip = np.asarray(PIL.Image.open(paths[-1]))
    assert strip.shape == (48, 5 * 72, 3)
    photo, *others = np.split(strip, 5, axis=1)
    assert all((other != photo).any() for other in others)


def test_feature_inversion_comes_near_and_draws_each_layer(
    tmp_path: pathlib.Path,
) -> None:
    run = save_run(random_net("vgg16"), tmp_path / "run")
    samples.pictures()[1].crop((0, 0, 90, 60)).save(tmp_path / "photo.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("photo", "out")]
    command = [sys.executable, str(ROOT / "examples" / "feature_inversion.py"), *paths]
    command += [
        f"--weights={run}",
        "--size=32",
        "--steps=40",
        "--layers=relu1_2,relu3_3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shares = [float(x.split("%")[0].split()[-1]) for x in done.stdout.splitlines()]
    assert len(shares) == 2 and shares[0] < 20 and shares[1] < 60
    strip = np.asarray(PIL.Image.open(paths[-1]))
    assert strip.shape == (32, 3 * 48, 3)


def test_an_autoencoder_trained_on_lpips_is_nearer_by_it(
    tmp_path: pathlib.Path,
) -> None:
    """With a random vgg16 of full width, as LPIPS takes no other."""
    net = random_net("vgg16", width_multiplier=1, head="none")
    net = net.replace(preprocessing=layouts.TORCHVISION)
    run = save_run(net, tmp_path / "run")
    (tmp_path / "photos").mkdir()
    for i, photo in enumerate(samples.pictures()):
        photo.save(tmp_path / "photos" / f"{i}.png")
    paths = [str(tmp_path / "photos"), str(tmp_path / "out.png")]
    command = [sys.executable, str(ROOT / "examples" / "perceptual_autoencoder.py")]
    command += [*paths, f"--weights={run}", "--steps=30"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    squares, both = (float(x.split()[-1]) for x in done.stdout.splitlines())
    assert both < squares
    assert np.asarray(PIL.Image.open(paths[-1])).shape == (3 * 48, 8 * 48, 3)
