"""`in_channels=1`: grey images for weights that were trained on RGB."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from conftest import random_net, save_run
from weight_files import WRITE_NAMED

import vgg_flax
from vgg_flax import cli
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.net import Net
from vgg_flax.weights import WeightsError
from vgg_flax.weights.lineages import layouts, mapping


def grey_photos() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 32, 40, 1)).astype(np.uint8)


def logits(net: Net, images: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(net(images))


def saved(net: Net, kind: str, folder: pathlib.Path) -> pathlib.Path:
    """A run, a file of ours, or one in torchvision's names as others save it."""
    if kind == "run":
        return save_run(net, folder / "run")
    path = folder / "net.pth"
    if kind == "ours":
        vgg_flax.save(net, path)
    else:
        layout = layouts.BY_NAME["torchvision"]
        tensors = mapping.to_tensors(net.variables, net.model, layout, bgr=False)
        WRITE_NAMED["torch_zip"](path, tensors)
    return path


@pytest.mark.parametrize("kind", ["run", "ours", "others"])
@pytest.mark.parametrize("variant", ["vgg11", "vgg13_bn"])
def test_equal_channels_with_equal_pixels_give_the_same_logits(
    variant: str, kind: str, tmp_path: pathlib.Path
) -> None:
    path = saved(random_net(variant), kind, tmp_path)
    by_hand = {"mean": (0.4,) * 3, "std": (0.3,) * 3} if kind == "others" else {}
    rgb = vgg_flax.load(path, **by_hand)
    grey = vgg_flax.load(path, in_channels=1, **by_hand)
    mean, std = (0.4, 0.3) if kind == "others" else (0.5, 0.25)
    assert grey.preprocessing.mean == pytest.approx((mean,))
    assert grey.preprocessing.std == pytest.approx((std,))
    assert (grey.model.in_channels, grey.class_names) == (1, rgb.class_names)
    images = grey_photos()
    expected = logits(rgb, np.repeat(images, 3, axis=3))
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert spread > 0.1
    found = logits(grey, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * spread)
    # The sum is of all three: a net of one of them has other logits.
    red = grey.replace(variables=grey.variables)
    red.variables["params"]["conv1_1"]["kernel"] = rgb.variables["params"]["conv1_1"][
        "kernel"
    ][:, :, :1]
    assert np.abs(logits(red, images) - expected).max() > 0.01 * spread


@pytest.mark.parametrize(
    "pixels", [layouts.TORCHVISION, layouts.CAFFE], ids=["torchvision", "caffe"]
)
def test_other_means_and_deviations_are_averaged(
    pixels: Preprocessing, tmp_path: pathlib.Path
) -> None:
    net = random_net("vgg11").replace(preprocessing=pixels)
    grey = vgg_flax.load(save_run(net, tmp_path), in_channels=1).preprocessing
    assert grey.mean == pytest.approx((np.mean(pixels.mean),))
    assert grey.std == pytest.approx((np.mean(pixels.std),))
    sizes = (grey.test_scale, grey.crop_size, grey.resize)
    assert sizes == (pixels.test_scale, pixels.crop_size, pixels.resize)


def test_what_has_as_many_channels_is_left_alone(tmp_path: pathlib.Path) -> None:
    for channels in (1, 3):
        net = random_net("vgg11", in_channels=channels)
        path = save_run(net, tmp_path / str(channels))
        again = vgg_flax.load(path, in_channels=channels)
        jax.tree.map(np.testing.assert_array_equal, again.variables, net.variables)
        assert again.preprocessing == net.preprocessing


@pytest.mark.parametrize(
    ("own", "asked", "said"),
    [
        (1, 3, r"in_channels=3 \(--in-channels\): .* takes 1; expected 1$"),
        (3, 2, "in_channels=2 .* takes 3; expected 3, or 1 for grey images"),
        (3, 0, "in_channels=0 .* takes 3"),
    ],
)
def test_other_numbers_of_channels_are_refused(
    own: int, asked: int, said: str, tmp_path: pathlib.Path
) -> None:
    path = save_run(random_net("vgg11", in_channels=own), tmp_path)
    with pytest.raises(WeightsError, match=said):
        vgg_flax.load(path, in_channels=asked)


def test_it_goes_with_a_new_head_with_an_end_and_with_a_dtype(
    tmp_path: pathlib.Path,
) -> None:
    path = save_run(random_net("vgg11"), tmp_path)
    more: tuple[dict[str, Any], ...] = (
        {"head": "gap", "num_classes": 3},
        {"until": "relu2_1"},
        {"include_top": False},
        {"dtype": "bfloat16"},
    )
    for options in more:
        net = vgg_flax.load(path, in_channels=1, **options)
        kernel = net.variables["params"]["conv1_1"]["kernel"]
        assert kernel.shape == (3, 3, 1, 4)
        assert str(kernel.dtype) == options.get("dtype", "float32")
        assert np.isfinite(net(grey_photos())).all()


def test_the_commands_take_it(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(save_run(random_net("vgg11"), tmp_path / "run"))
    for target in ("grey.safetensors", "grey"):
        out = str(tmp_path / target)
        assert cli.main(["convert", run, out, "--in-channels=1"]) == 0
        assert "conv1_1 summed over RGB" in capsys.readouterr().err
        again = vgg_flax.load(out)
        assert (again.model.in_channels, again.preprocessing.mean) == (1, (0.5,))
    assert cli.main(["describe", "vgg11", "--in-channels=1"]) == 1
    assert "--in-channels 1 is of one file or run" in capsys.readouterr().err
