"""Somebody's weights for a run: files that tell little, and nets that do not fit."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from conftest import changed, random_net
from weight_files import write_named_safetensors

import vgg_flax
from vgg_flax import config as config_lib
from vgg_flax import errors
from vgg_flax.config import Config
from vgg_flax.training import borrowing, distillation, resumption
from vgg_flax.weights import fetch


def untold(path: pathlib.Path, **fields: Any) -> pathlib.Path:
    """A file as CIFAR's nets have it: one FC layer, and no word of its pixels."""
    net = random_net("vgg11_bn", head="linear", **fields)
    whole = path.with_name(f"whole_{path.name}")
    vgg_flax.save(net, whole)
    arrays = fetch.read(str(whole)).entry(None)
    write_named_safetensors(path, {k: np.asarray(v) for k, v in arrays.items()})
    return path


def of_file(tiny_config: Config, path: pathlib.Path, **fields: Any) -> Config:
    return changed(
        tiny_config,
        model__head="linear",
        model__in_channels=3,
        data__mean=None,
        data__std=None,
        init_from=str(path),
        **fields,
    )


def test_a_file_that_tells_no_size_has_the_runs(
    tiny_config: Config, tmp_path: pathlib.Path
) -> None:
    path = untold(tmp_path / "cifar.safetensors")
    with pytest.raises(errors.VGGFlaxError, match="do not tell the size"):
        vgg_flax.load(path)
    config = of_file(tiny_config, path)
    net = resumption.load_weights(config)
    assert net is not None
    sizes = net.preprocessing.crop_size, net.preprocessing.test_scale
    assert sizes == (config.data.crop_size, config.data.test_scale)
    teaching = changed(config, init_from="", distillation__teacher=str(path))
    teacher = distillation.load(teaching, 10)
    assert teacher is not None
    jax.tree.map(np.testing.assert_array_equal, teacher.variables, net.variables)


def test_a_file_that_tells_no_pixels_has_the_runs(
    tiny_config: Config, tmp_path: pathlib.Path
) -> None:
    path = untold(tmp_path / "grey.safetensors", in_channels=1)
    told = changed(tiny_config, data__mean=(0.3,), data__std=(0.2,)).data
    net = borrowing.load(path, told)
    assert (net.preprocessing.mean, net.preprocessing.std) == ((0.3,), (0.2,))
    silent = changed(tiny_config, data__mean=None, data__std=None).data
    with pytest.raises(errors.VGGFlaxError, match=r"config\.data\.mean") as caught:
        borrowing.load(path, silent)
    assert "grey.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"model__variant": "vgg13_bn"}, ["variant=vgg11_bn"]),
        ({"model__width_multiplier": 1 / 8}, ["width_multiplier=0.0625"]),
        ({"model__conv_bias": False}, ["conv_bias=true"]),
        (
            {"model__variant": "vgg16", "model__width_multiplier": 1 / 4},
            ["variant=vgg11_bn", "width_multiplier=0.0625"],
        ),
    ],
)
def test_a_net_that_does_not_fit_is_told_by_the_flags_that_would(
    fields: dict[str, Any],
    flags: list[str],
    tiny_config: Config,
    tmp_path: pathlib.Path,
) -> None:
    config = of_file(tiny_config, untold(tmp_path / "cifar.safetensors"), **fields)
    weights = resumption.load_weights(config)
    with pytest.raises(errors.ConfigError) as caught:
        resumption.new_state(config, weights)
    found = str(caught.value).split("go with ")[1].split(";")[0].split()
    assert found == [f"--config.model.{flag}" for flag in flags]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"distillation__temperature": 4.0}, "there is none"),
        ({"distillation__teacher_ema": True}, "there is none"),
        ({"init_ema": True}, "config.init_from, which is empty"),
    ],
)
def test_settings_of_weights_that_are_not_there_are_refused(
    fields: dict[str, Any], told: str, tiny_config: Config
) -> None:
    with pytest.raises(errors.ConfigError, match=told):
        config_lib.check(changed(tiny_config, **fields))


def test_a_head_of_its_own_is_named_as_the_cause(tmp_path: pathlib.Path) -> None:
    net = random_net("vgg11_bn", head="none").replace(class_names=())
    vgg_flax.save(net, tmp_path / "whole.safetensors")
    arrays = fetch.read(str(tmp_path / "whole.safetensors")).entry(None)
    arrays = {f"model.{name}": np.asarray(value) for name, value in arrays.items()}
    head = {"model.head.1.weight": np.ones((3, 32), np.float32)}
    write_named_safetensors(tmp_path / "lightning.safetensors", {**arrays, **head})
    with pytest.raises(errors.VGGFlaxError) as caught:
        vgg_flax.load(tmp_path / "lightning.safetensors", crop_size=32)
    assert "Its head is not that of a VGG" in str(caught.value)
    assert "convolutions only" not in str(caught.value)


def test_a_value_of_another_type_is_shown_as_it_was_given() -> None:
    values = {"optimizer": {"layer_rates": ("stage1", 0.1)}}
    with pytest.raises(errors.ConfigError) as caught:
        config_lib.from_dict(values)
    assert str(caught.value) == (
        "config.optimizer.layer_rates=('stage1', 0.1); expected "
        "tuple[tuple[str, float], ...]; a single row ends with a comma: ((...),)"
    )
