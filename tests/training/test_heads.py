"""A head of one layer over a window: trained, saved, sent out, and started from."""

import pathlib

import jax
import numpy as np
import pytest
from conftest import changed, random_net

import vgg_flax
from vgg_flax import config as config_lib
from vgg_flax.training import resumption, trainer
from vgg_flax.training import state as state_lib


@pytest.fixture
def linear(bare_config: config_lib.Config) -> config_lib.Config:
    """Two steps at 64 pixels, whose last map is the window of 2."""
    return changed(
        bare_config,
        model__head="linear",
        model__fc6_window=2,
        data__crop_size=64,
        data__test_scale=64,
        data__train_scale=(64, 72),
        data__train_split="train[:64]",
        data__validation_split="",
        data__test_split="test[:64]",
        num_steps=2,
    )


@pytest.mark.parametrize("shard_fc", [False, True])
def test_a_linear_head_trains_and_leaves(
    shard_fc: bool, linear: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    trainer.train_and_evaluate(changed(linear, shard_fc=shard_fc), tmp_path / "run")
    net = vgg_flax.load(tmp_path / "run")
    kernel = net.variables["params"]["fc8"]["kernel"]
    assert kernel.shape == (2, 2, 32, 10) and set(net.variables["params"]) == {
        *(f"conv{stage}_1" for stage in range(1, 6)),
        "fc8",
    }
    drawn = state_lib.draw_state(linear).params["fc8"]["kernel"]
    moved = np.abs(np.asarray(kernel) - np.asarray(drawn)).max(axis=(2, 3))
    assert (moved > 0).all()  # at each of the window's places

    vgg_flax.save(net, tmp_path / "net.pth")
    config = changed(linear, init_from=str(tmp_path / "net.pth"), seed=1)
    state = resumption.new_state(config, resumption.load_weights(config))
    jax.tree.map(np.testing.assert_array_equal, state.params, net.variables["params"])


@pytest.mark.parametrize(
    "fields",
    [{"fc6_window": 1}, {"fc6_window": 3}, {"head": "gap"}, {"head": "fc"}],
    ids=str,
)
def test_another_head_starts_anew(
    fields: dict[str, object],
    linear: config_lib.Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    net = random_net("vgg8", in_channels=1, **{"head": "linear", **fields})
    vgg_flax.save(net, tmp_path / "net")
    config = changed(linear, init_from=str(tmp_path / "net"), seed=1)
    ours = resumption.new_state(config, resumption.load_weights(config)).params
    assert "fc8: drawn anew" in capsys.readouterr().err
    fresh = state_lib.draw_state(config).params["fc8"]
    jax.tree.map(np.testing.assert_array_equal, ours["fc8"], fresh)
    first, expected = ours["conv1_1"], net.variables["params"]["conv1_1"]
    jax.tree.map(np.testing.assert_array_equal, first, expected)
