"""What is said of a net, against published numbers and against the net's gradients."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import random_net, save_run
from torchvision_net import torchvision_tensors

from vgg_flax import cli, model
from vgg_flax.model import description

# Parameters, and GMACs at 224 pixels, as torchvision documents them for its weights.
PUBLISHED = {
    "vgg11": (132_863_336, 7.61),
    "vgg13": (133_047_848, 11.31),
    "vgg16": (138_357_544, 15.47),
    "vgg19": (143_667_240, 19.63),
    "vgg11_bn": (132_868_840, 7.61),
    "vgg13_bn": (133_053_736, 11.31),
    "vgg16_bn": (138_365_992, 15.47),
    "vgg19_bn": (143_678_248, 19.63),
}


def describe(variant: str, *shape: int, **fields: Any) -> description.Description:
    batch, height, width, channels = shape or (1, 224, 224, 3)
    net = model.VGG(variant, **fields)
    return description.describe(net, (batch, height, width, channels))


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(variant: str) -> None:
    described = describe(variant)
    gmacs = round(described.macs / 1e9, 2)
    assert (described.parameters, gmacs) == PUBLISHED[variant]
    assert described.parameter_bytes == 4 * described.parameters


def test_vgg16_has_the_receptive_fields_of_the_literature() -> None:
    described = describe("vgg16")
    found = {
        name: (described[name].receptive_field, described[name].stride)
        for name in ("conv1_1", "conv1_2", "pool4", "conv5_3", "pool5", "fc6", "fc8")
    }
    assert found == {
        "conv1_1": (3, 1),
        "conv1_2": (5, 1),
        "pool4": (100, 16),
        "conv5_3": (196, 16),
        "pool5": (212, 32),
        "fc6": (404, 32),
        "fc8": (404, 32),
    }


def test_shapes_and_bytes_of_one_layer_of_each_kind() -> None:
    described = describe("vgg16_bn", 2, 256, 340, 3, dtype="bfloat16")
    assert described["conv1_1"].shape == (2, 256, 340, 64)
    assert described["conv1_1"].activation_bytes == 2 * 256 * 340 * 64 * 2
    assert described["conv1_1"].macs == 2 * 256 * 340 * 64 * 9 * 3
    assert described["bn1_1"].parameters == 128
    assert described["pool5"].shape == (2, 8, 10, 512)
    assert described["fc6"].shape == (2, 2, 4, 4096)
    assert described["fc8"].shape == (2, 2, 4, 1000)
    assert described["fc8"].parameters == 4096 * 1000 + 1000
    assert described.parameter_bytes == 4 * 138_365_992  # params stay float32


@pytest.mark.parametrize("variant", ["vgg11_lrn", "vgg16_1x1", "vgg16_bn"])
def test_a_position_depends_on_the_pixels_of_its_receptive_field(variant: str) -> None:
    # All weights positive and pools that average: no path from a pixel is cut off.
    net = model.VGG(
        variant, width_multiplier=1 / 64, fc_widths=(1, 1), pooling="average"
    )
    images = jnp.ones((1, 448, 448, 3))
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1 / 9), shapes)
    names = {"conv1_1": "relu1_1", "conv4_1": "relu4_1", "pool3": "pool3"}
    names |= {"pool5": "pool5", "fc6": "relu6"}

    def taps(images: jax.Array) -> dict[str, jax.Array]:
        _, collections = net.apply(variables, images, mutable="intermediates")
        found = collections["intermediates"]
        return {name: found[tap] for name, tap in names.items()}

    @jax.jit
    def gradient(place: int | jax.Array, which: dict[str, float]) -> jax.Array:
        def chosen(images: jax.Array) -> jax.Array:
            return sum(
                which[name] * jnp.take(x[0, :, :, 0].diagonal(), place)
                for name, x in taps(images).items()
            )

        return jax.grad(chosen)(images)

    described = description.describe(net, (1, 448, 448, 3))
    for name in names:
        layer = described[name]
        place = layer.shape[1] // 2 - 1
        which = {other: float(other == name) for other in names}
        support = np.asarray(gradient(place, which)[0, :, :, 0] != 0)
        center = layer.center + layer.stride * place
        for axis in (0, 1):
            (pixels,) = support.any(axis).nonzero()
            reach = (layer.receptive_field - 1) / 2
            assert (pixels[0], pixels[-1]) == (center - reach, center + reach), name
            assert len(pixels) == layer.receptive_field


def test_a_head_that_pools_globally_has_fc8_alone() -> None:
    described = describe("vgg11", 1, 32, 32, 3, head="gap", num_classes=10)
    assert [layer.name for layer in described.layers[-2:]] == ["pool5", "fc8"]
    assert described["fc8"].receptive_field == described["pool5"].receptive_field


def test_too_small_an_image_is_refused_with_the_size_it_needs() -> None:
    with pytest.raises(description.DescriptionError, match="at least 224 pixels"):
        describe("vgg16", 1, 200, 224, 3)


def test_the_command_prints_a_table_and_the_totals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["describe", "D", "--batch", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vgg16 on images of 2 x 224 x 224 x 3"
    row = next(line.split() for line in lines if line.startswith("conv5_3"))
    shape = ["2", "x", "14", "x", "14", "x", "512"]
    assert row == ["conv5_3", *shape, "196", "16", "2,359,808", "924.8", "802.8"]
    assert any("138,357,544 (553.4 MB)" in line for line in lines)
    assert any("30.94 GMACs" in line for line in lines)


def test_the_commands_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["describe", "vgg13_bn", "--size", "256", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["variant"] == "vgg13_bn"
    assert found["shape"] == [1, 256, 256, 3]
    assert found["parameters"] == 133_053_736
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert found["layers"][-1]["shape"] == [1, 2, 2, 1000]


def test_the_command_takes_a_trained_net_and_its_crop(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(random_net("vgg11_bn"), tmp_path)
    assert cli.main(["describe", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["variant"], found["shape"]) == ("vgg11_bn", [1, 32, 32, 3])
    assert found["layers"][-1]["shape"] == [1, 1, 1, 10]


def test_the_command_refuses_what_is_neither_variant_nor_net(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["describe", "vgg17"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and "vgg17" in captured.err
    for option in ("--size=100", "--size=0", "--size=-300"):
        assert cli.main(["describe", "vgg16", option]) == 1
        assert "at least 224 pixels" in capsys.readouterr().err
    assert cli.main(["describe", "vgg16", "--batch=0"]) == 1
    assert "expected at least one" in capsys.readouterr().err


def test_a_file_of_features_is_described_when_asked_for(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = torchvision_tensors("vgg11")
    features = {k: v for k, v in tensors.items() if k.startswith("features.")}
    path = tmp_path / "features.safetensors"
    safetensors.numpy.save_file(features, path)
    assert cli.main(["describe", str(path)]) == 1
    assert "--features-only" in capsys.readouterr().err
    assert cli.main(["describe", str(path), "--features-only"]) == 0
    printed = capsys.readouterr().out
    assert "conv5_2" in printed and "fc6" not in printed
