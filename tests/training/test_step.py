"""The update: independent of the layout, exact under masks, equal when accumulated."""

import functools
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed

from vgg_flax import config as config_lib
from vgg_flax import metrics, parallel
from vgg_flax.data import batches as batches_lib
from vgg_flax.data import splits
from vgg_flax.data.batches import Shard
from vgg_flax.images import preprocessing
from vgg_flax.training import schedules
from vgg_flax.training import state as state_lib
from vgg_flax.training import step as step_lib
from vgg_flax.training.state import TrainState

LAYOUTS = (1, 2, 4, 8)


def some_batches(config: config_lib.Config, count: int) -> list[Any]:
    data = config.data
    split = splits.open_split(data, data.train_split, config.model.num_classes)
    stream = batches_lib.train_batches(
        data, split, seed=0, start_example=0, shard=Shard()
    )
    return [next(stream) for _ in range(count)]


def first_state(config: config_lib.Config) -> TrainState:
    """What a run starts with."""
    return first_state_of(config_lib.to_json(config))


@functools.cache  # by the text; most tests start alike
def first_state_of(text: str) -> TrainState:
    config = config_lib.from_dict(json.loads(text))
    return jax.device_get(jax.jit(lambda: state_lib.init_state(config))())


@functools.cache
def compiled_step(text: str, devices: int) -> Callable[[Any, Any], Any]:
    """A config's step on the first `devices`; called again it is not traced again."""
    config = config_lib.from_dict(json.loads(text))
    schedule = schedules.make_schedule(config.optimizer, 20.0, 1000)
    return parallel.pmap_step(
        step_lib.make_train_step(config, schedule),
        donate_state=True,
        devices=jax.devices()[:devices],
    )


def test_the_first_params_are_those_of_the_whole_optimiser(
    bare_config: config_lib.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are compiled with less thought, and what a seed gives is to stay."""
    config = changed(bare_config, model__initializer="he")
    lowered = jax.jit(lambda: state_lib.init_state(config)).lower()
    whole = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
    }
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:  # jaxlib 0.10's
        whole["xla_cpu_use_fusion_emitters"] = True
    expected = lowered.compile(whole)()
    monkeypatch.setenv("XLA_FLAGS", "")
    drawn = state_lib.draw_state(config)
    assert jax.tree.structure(drawn) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (drawn, expected)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def run(
    config: config_lib.Config, batches: list[Any], devices: int
) -> tuple[Any, list[dict[str, float]]]:
    """The state and the metrics after one update a batch on the first `devices`."""
    chosen = jax.devices()[:devices]
    step = compiled_step(config_lib.to_json(config), devices)
    state = parallel.replicate(first_state(config), chosen)
    history = []
    for batch in batches:
        state, values = step(state, parallel.shard(batch, chosen))
        history.append({name: value.item() for name, value in values.items()})
    return jax.device_get(state), history


pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture
def tiny_config(tiny_config: config_lib.Config) -> config_lib.Config:
    return changed(tiny_config, model__variant="vgg8_bn")


@pytest.fixture
def rich_config(tiny_config: config_lib.Config) -> config_lib.Config:
    """Dropout, augmentation and BatchNorm across replicas."""
    return changed(tiny_config, model__batch_norm_across_replicas=True)


@pytest.mark.slow
def test_the_first_float32_step_is_the_same_on_1_2_4_and_8_devices(
    rich_config: config_lib.Config,
) -> None:
    batches = some_batches(rich_config, 1)
    values = [run(rich_config, batches, devices)[1][0] for devices in LAYOUTS]
    for other in values[1:]:
        for name in ("loss", "gradient_norm"):
            np.testing.assert_allclose(other[name], values[0][name], rtol=1e-5)
        assert other["count"] == 64


@pytest.mark.slow
def test_float64_losses_of_12_accumulated_steps_agree_on_1_and_8_devices(
    rich_config: config_lib.Config,
) -> None:
    """Without accumulation test_layouts.py has it, in several processes too."""
    recipe = changed(
        rich_config, model__dtype="float64", optimizer__accumulation_steps=2
    )
    batches = some_batches(recipe, 12)
    with jax.enable_x64(True):
        histories = [run(recipe, batches, devices)[1] for devices in (1, 8)]
    losses = np.array([[values["loss"] for values in one] for one in histories])
    assert losses.shape == (2, 12)
    assert np.ptp(losses[0]) > 1e-3  # it learns something
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-9)


def test_each_device_sees_its_own_part_of_the_batch(
    bare_config: config_lib.Config,
) -> None:
    """A forgotten psum would return the first device's loss."""
    config = changed(bare_config, model__dropout_rate=0.0)
    (batch,) = some_batches(config, 1)
    state, (values,) = run(config, [batch], 8)
    first = jax.tree.map(lambda x: x[:8], batch)
    _, (alone,) = run(config, [first], 1)
    assert abs(values["loss"] / 64 - alone["loss"] / 8) > 1e-4
    assert state.step == 1


def plain_gradients(config: config_lib.Config, params: Any, batch: Any) -> Any:
    """Gradients of the mean loss over unmasked examples, without the step's code."""
    net = state_lib.make_model(config.model)
    images = preprocessing.Preprocessing.of(config.data).normalize(batch["image"])
    chosen = np.flatnonzero(batch["mask"])

    def loss(params: Any) -> jax.Array:
        logits = net.apply({"params": params}, images[chosen])
        return metrics.cross_entropy(logits, jnp.asarray(batch["label"][chosen])).mean()

    return jax.jit(jax.grad(loss))(params)  # eagerly, each operation is compiled


def test_the_update_is_sgd_with_momentum_and_coupled_l2(
    bare_config: config_lib.Config,
) -> None:
    config = changed(
        bare_config,
        model__dropout_rate=0.0,
        optimizer__weight_decay=0.1,
        optimizer__learning_rate=0.3,
    )
    batches = some_batches(config, 2)
    batches[1]["mask"][5:9] = False
    batches[1]["image"][5:9] = 255
    params = jax.device_get(first_state(config).params)
    velocity = jax.tree.map(np.zeros_like, params)
    for batch in batches:
        gradients = plain_gradients(config, params, batch)
        velocity = jax.tree.map(
            lambda v, g, w: 0.9 * v + np.asarray(g) + 0.1 * w,
            velocity,
            gradients,
            params,
        )
        params = jax.tree.map(lambda w, v: w - 0.3 * v, params, velocity)
    state, history = run(config, batches, 4)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-6),
        state.params,
        params,
    )
    assert history[1]["count"] == 60
    norm = np.sqrt(sum((np.asarray(w) ** 2).sum() for w in jax.tree.leaves(params)))
    np.testing.assert_allclose(history[1]["parameter_norm"], norm, rtol=1e-5)


def test_what_is_masked_has_no_influence(tiny_config: config_lib.Config) -> None:
    config = changed(tiny_config, model__variant="vgg8")
    (batch,) = some_batches(config, 1)
    batch["mask"][3] = False
    garbage = {**batch, "image": batch["image"].copy(), "label": batch["label"].copy()}
    garbage["image"][3], garbage["label"][3] = 77, -1
    one, two = run(config, [batch], 2)[0], run(config, [garbage], 2)[0]
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_accumulated_micro_batches_are_one_batch(
    tiny_config: config_lib.Config,
) -> None:
    config = changed(tiny_config, model__variant="vgg8")  # with dropout
    batches = some_batches(config, 2)
    whole, cut = (
        run(changed(config, optimizer__accumulation_steps=pieces), batches, 2)
        for pieces in (1, 4)
    )
    for name, value in whole[1][1].items():
        np.testing.assert_allclose(cut[1][1][name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        whole[0].params,
        cut[0].params,
    )


def test_batch_norm_per_device_averages_the_running_statistics(
    bare_config: config_lib.Config,
) -> None:
    config = changed(bare_config, model__variant="vgg8_bn")
    (batch,) = some_batches(config, 1)
    state, _ = run(config, [batch], 2)
    halves = []
    for part in (slice(0, 32), slice(32, 64)):
        half = jax.tree.map(lambda x, part=part: x[part], batch)
        halves.append(run(config, [half], 1)[0].batch_stats["bn1_1"])
    for name in ("mean", "var"):
        mean = (halves[0][name] + halves[1][name]) / 2
        np.testing.assert_allclose(state.batch_stats["bn1_1"][name], mean, rtol=1e-5)
        assert np.abs(halves[0][name] - halves[1][name]).max() > 1e-6


def test_the_colour_shift_reaches_the_net(bare_config: config_lib.Config) -> None:
    config = changed(
        bare_config,
        model__in_channels=3,
        data__mean=(0.3,) * 3,
        data__std=(0.4,) * 3,
        data__color_shift=0.1,
    )
    (batch,) = some_batches(config, 1)
    assert batch["color_shift"].shape == (64, 3)
    shifted = run(config, [batch], 2)[1][0]["loss"]
    still = {**batch, "color_shift": np.zeros_like(batch["color_shift"])}
    assert shifted != run(config, [still], 2)[1][0]["loss"]


def test_bfloat16_keeps_float32_params_and_follows_float32(
    bare_config: config_lib.Config,
) -> None:
    config = changed(bare_config, model__dropout_rate=0.0)
    batches = some_batches(config, 2)
    exact = run(config, batches, 2)[1]
    state, rounded = run(changed(config, model__dtype="bfloat16"), batches, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.float32.dtype}
    np.testing.assert_allclose(rounded[1]["loss"], exact[1]["loss"], rtol=0.02)


def test_the_plateau_divides_the_rate_the_step_uses(
    bare_config: config_lib.Config,
) -> None:
    config = changed(bare_config, optimizer__schedule="plateau")
    schedule = schedules.make_schedule(config.optimizer, 20.0, 100)
    step = parallel.pmap_step(
        step_lib.make_train_step(config, schedule), donate_state=True
    )
    state = first_state(config)
    state = state.replace(
        plateau=state.plateau.replace(decays=jnp.asarray(2, jnp.int32))
    )
    (batch,) = some_batches(config, 1)
    _, values = step(parallel.replicate(state), parallel.shard(batch))
    np.testing.assert_allclose(values["learning_rate"], 0.05 * 0.01, rtol=1e-5)


def test_evaluation_counts_53_examples_at_batch_16_as_53(
    bare_config: config_lib.Config,
) -> None:
    from vgg_flax.training import validation

    config = changed(
        bare_config, data__eval_batch_size=16, data__test_split="test[:53]"
    )
    split = splits.open_split(config.data, config.data.test_split, 10)
    state = parallel.replicate(first_state(config))
    step = parallel.pmap_step(step_lib.make_eval_step(config), donate_state=False)

    def measure(batches: Any) -> dict[str, Any]:
        return validation.validate(step, state.variables, batches, 53)

    batches = list(batches_lib.eval_batches(config.data, split, shard=Shard()))
    result = measure(parallel.prefetch(batches))
    assert result["count"] == 53
    net = state_lib.make_model(config.model)
    images = np.concatenate([b["image"] for b in batches])[:53]
    labels = np.concatenate([b["label"] for b in batches])[:53]
    normalized = preprocessing.Preprocessing.of(config.data).normalize(images)
    logits = np.asarray(net.apply(jax.device_get(state.variables), normalized))
    assert result["top1_count"] == (logits.argmax(axis=1) == labels).sum()
    ranks = (-logits).argsort(axis=1, kind="stable")[:, :5]
    assert result["top5_count"] == (ranks == labels[:, None]).any(axis=1).sum()
    with pytest.raises(RuntimeError, match="evaluated 48 images of a split of 53"):
        measure(parallel.prefetch(batches[:3]))
    with pytest.raises(RuntimeError, match="evaluated 69"):
        measure(parallel.prefetch([*batches, batches[0]]))


def test_params_are_updated_in_place() -> None:
    """Beside the state a step has no room for all gradients, nor for a copy of it."""
    model = config_lib.ModelConfig(
        variant="vgg11", num_classes=10, width_multiplier=1 / 8
    )
    config = config_lib.Config(model=model)
    state = jax.eval_shape(lambda: state_lib.init_state(config))
    batch = {
        "image": jax.ShapeDtypeStruct((1, 8, 224, 224, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((1, 8), np.int32),
        "mask": jax.ShapeDtypeStruct((1, 8), bool),
        "index": jax.ShapeDtypeStruct((1, 8), np.int32),
    }
    step = parallel.pmap_step(
        step_lib.make_train_step(config, lambda _: 0.01),
        donate_state=True,
        devices=jax.devices()[:1],
    )
    taken = step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
    assert taken < weights
