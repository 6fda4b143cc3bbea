"""FC kernels cut over replicas: nothing of the training changes but where they are."""

from typing import Any

import jax
import numpy as np
import pytest
from conftest import changed

from vgg_flax import config as config_lib
from vgg_flax import parallel
from vgg_flax.training import state as state_lib
from vgg_flax.training import step as step_lib


@pytest.fixture
def recipe(tiny_config: config_lib.Config) -> config_lib.Config:
    """Widths that no number of devices divides, in float64."""
    return changed(
        tiny_config,
        model__dtype="float64",
        model__fc_widths=(18, 22),
        model__batch_norm_across_replicas=True,
    )


def batch(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    return {
        "image": random.integers(0, 256, (48, 32, 32, 1)).astype(np.uint8),
        "label": random.integers(0, 10, 48).astype(np.int32),
        "mask": random.random(48) < 0.9,
        "index": np.arange(48, dtype=np.int32),
    }


def train(recipe: config_lib.Config, count: int) -> tuple[np.ndarray, Any]:
    """Three steps on `count` devices: metrics of each step, and the whole state."""
    devices = jax.devices()[:count]
    shards = state_lib.make_shards(recipe, count, devices)
    assert bool(shards.shapes) == recipe.shard_fc
    state = jax.jit(lambda: state_lib.init_state(recipe))()
    step = parallel.pmap_step(
        step_lib.make_train_step(recipe, lambda _: 0.05, shards),
        donate_state=True,
        state_axes=shards.axes(state),
        devices=devices,
    )
    state = shards.place(state)
    told = []
    for number in range(3):
        state, metrics = step(state, parallel.shard(batch(number), devices))
        told.append([float(value) for _, value in sorted(metrics.items())])
    return np.array(told), jax.device_get(shards.fetch(state))


def assert_close(one: Any, other: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), one, other
    )


@pytest.mark.parametrize("count", [3, 8])  # in one piece, in three rounds
def test_cutting_changes_nothing(recipe: config_lib.Config, count: int) -> None:
    with jax.enable_x64(True):
        whole = train(recipe, count)
        cut = train(changed(recipe, shard_fc=True), count)
    assert_close(whole, cut)


def test_cutting_changes_nothing_with_micro_batches_and_remat(
    recipe: config_lib.Config,
) -> None:
    recipe = changed(recipe, optimizer__accumulation_steps=2)
    with jax.enable_x64(True):
        whole = train(recipe, 4)
        cut = train(changed(recipe, shard_fc=True, remat=True), 4)
    assert_close(whole, cut)


def test_remat_without_batch_norm_goes_some_images_at_a_time(
    recipe: config_lib.Config,
) -> None:
    recipe = changed(recipe, model__variant="vgg11")
    frugal = changed(recipe, shard_fc=True, remat=True)
    with jax.enable_x64(True):
        assert_close(train(recipe, 1), train(frugal, 2))
        text = jax.make_jaxpr(
            step_lib.make_train_step(frugal, lambda _: 0.05),
            axis_env=[(parallel.AXIS_NAME, 1)],
        )(jax.eval_shape(lambda: state_lib.init_state(frugal)), batch(0))
    assert "3,16,32,32,1" in str(text)  # 48 images


def test_a_head_without_hidden_layers_is_cut_too(recipe: config_lib.Config) -> None:
    recipe = changed(recipe, model__head="gap")
    with jax.enable_x64(True):
        assert_close(train(recipe, 4), train(changed(recipe, shard_fc=True), 4))


def test_a_replica_keeps_its_rows_only_and_they_come_back(
    recipe: config_lib.Config,
) -> None:
    recipe = changed(recipe, shard_fc=True, model__dtype="float32")
    shards = state_lib.make_shards(recipe, 8)
    state = jax.jit(lambda: state_lib.init_state(recipe))()
    whole = jax.device_get(state)
    placed = shards.place(state)
    kernel = placed.params["fc7"]["kernel"]
    assert kernel.shape == (8, 3, 22)  # 18 rows over 8 replicas
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(1, 3, 22)}
    momentum = placed.opt_state[1].trace["fc7"]["kernel"]
    assert momentum.shape == kernel.shape
    assert placed.params["fc7"]["bias"].shape == (22,)
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(shards.fetch(placed)), whole
    )
    shapes = shards.shapes_of(whole)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), placed, shapes)


def test_rounds_halve_what_travels(recipe: config_lib.Config) -> None:
    recipe = changed(recipe, shard_fc=True, model__dtype="float32")
    shards = state_lib.make_shards(recipe, 8)
    assert shards.rounds == 3
    step = parallel.pmap_step(
        lambda state, x: _halve_all(shards, state, x), donate_state=False
    )
    grads = {
        k: {"kernel": np.ones(shape, np.float32)} for k, shape in shards.shapes.items()
    }
    sizes = step(grads, np.zeros((8, 1), np.float32))
    # Chunks of both halves of the columns before the first round and after each.
    assert [int(n) for n in sizes] == [8, 4, 2, 1]


def _halve_all(shards: parallel.FCShards, grads: Any, _: Any) -> list[Any]:
    pending = shards.cut(grads)
    sizes = [len(pending["fc6"][0])]
    for number in range(shards.rounds):
        pending = shards.halve(number, pending)
        assert len({len(x) for halves in pending.values() for x in halves}) == 1
        sizes.append(len(pending["fc6"][0]))
    return [np.int32(n) for n in sizes]
