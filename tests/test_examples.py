"""The programs in examples/, small: each does what its first line says."""

import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import samples
from conftest import random_net, save_run
from documents import ROOT

from vgg_flax.weights.lineages import layouts


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
