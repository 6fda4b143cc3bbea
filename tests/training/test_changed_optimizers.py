"""An optimiser of one's own; a run that goes on with another, or with other layers."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import changed, tiny

from vgg_flax import config as config_lib
from vgg_flax import errors, parallel
from vgg_flax.config import Config, OptimizerConfig
from vgg_flax.runs import checkpoint
from vgg_flax.runs.leaves import Checkpoint, Leaves, describe, to_leaves
from vgg_flax.training import objectives, optimizers, resumption, schedules, trainer
from vgg_flax.training import state as state_lib
from vgg_flax.training import step as step_lib
from vgg_flax.training.job import Job

RECIPE = """
import optax
from vgg_flax.config import Config, OptimizerConfig

def get_config():
    return Config(optimizer=OptimizerConfig(name="custom", schedule="constant"))

def get_optimizer(config):
    return optax.adamw(config.optimizer.learning_rate)
"""
NAMES = ("sgd", "rmsprop", "adamw", "lamb", "lion", "muon")


@pytest.fixture(scope="module")
def config(shallow: None, digits_dir: str) -> Config:
    """One convolution a stage and fc8; one step of 64 digits, no validation."""
    return changed(
        tiny(digits_dir),
        model__variant="vgg8",
        model__head="gap",
        data__validation_split="",
        data__test_split="test[:64]",
        optimizer__name="adamw",
        optimizer__learning_rate=1e-3,
        freeze=("stage1",),
        num_steps=1,
    )


@pytest.fixture(scope="module")
def saved(
    config: Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, Checkpoint]:
    """A workdir, and a step of a run in it by adamw, nothing in whose state is 0."""
    workdir = tmp_path_factory.mktemp("adamw")
    job = Job.prepare(config, workdir)
    leaves = to_leaves(state_lib.draw_state(config))
    for path in leaves:
        if path.startswith("opt_state/"):
            leaves[path] += 1
    meta = {
        "config": dataclasses.asdict(config),
        "class_names": job.class_names,
        "data": job.fingerprints,
        "evaluated": True,
        "leaves": describe(leaves),
    }
    return workdir, Checkpoint(1, leaves, meta)


def carried(
    config: Config,
    saved: tuple[pathlib.Path, Checkpoint],
    optimizer: optax.GradientTransformation | None = None,
) -> Leaves:
    """The optimiser's leaves with which a run would go on."""
    workdir, step = saved
    job = Job.prepare(config, workdir, optimizer=optimizer)
    _, state = resumption.first_state(job, step)
    return {k: v for k, v in to_leaves(state).items() if k.startswith("opt_state/")}


def layers(leaves: Leaves) -> set[str]:
    return {path.split("/")[-2] for path, leaf in leaves.items() if leaf.ndim}


def test_a_run_does_not_go_on_with_another_optimiser_unless_told_to(
    config: Config,
    saved: tuple[pathlib.Path, Checkpoint],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Even where the parts of its state have the same names and shapes."""
    other = changed(config, optimizer__name="lamb")
    with pytest.raises(errors.ConfigError, match=r"optimizer\.name: 'adamw' -> 'lamb'"):
        carried(other, saved)
    leaves = carried(changed(other, resume_with_changes=True), saved)
    assert not any(leaf.any() for leaf in leaves.values())
    assert "optimizer adamw -> lamb: its state begins anew" in capsys.readouterr().err
    same = carried(
        changed(config, optimizer__clip_norm=9.0, resume_with_changes=True), saved
    )
    assert same.keys() == leaves.keys()
    for path, leaf in same.items():
        assert leaf.any(), path


def test_thawed_layers_have_a_counting_optimiser_begin_anew(
    config: Config,
    saved: tuple[pathlib.Path, Checkpoint],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its correction of means that began at 0 would be wrong for them."""
    config = changed(config, resume_with_changes=True)
    leaves = carried(changed(config, freeze=()), saved)
    assert "conv1_1" in layers(leaves)
    assert not any(leaf.any() for leaf in leaves.values())
    told = "optimizer adamw counts its updates, and layers are new to it: its state"
    assert told in capsys.readouterr().err
    leaves = carried(changed(config, freeze=("stage1", "stage2")), saved)
    assert layers(leaves) == {"conv3_1", "conv4_1", "conv5_1", "fc8"}
    assert all(leaf.any() for leaf in leaves.values())
    assert "conv2_1: frozen from here on" in capsys.readouterr().err


def test_a_state_of_other_parts_is_told(
    config: Config,
    saved: tuple[pathlib.Path, Checkpoint],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As of a custom optimiser, of whose making the config says nothing."""
    workdir, step = saved
    custom = changed(config, optimizer__name="custom")
    step = dataclasses.replace(
        step, meta={**step.meta, "config": dataclasses.asdict(custom)}
    )
    with pytest.raises(errors.ConfigError, match="made otherwise than at step 1: "):
        carried(custom, (workdir, step), optax.sgd(0.1, momentum=0.9))
    made = optax.inject_hyperparams(optax.sgd)(learning_rate=0.25, momentum=0.9)
    leaves = carried(changed(custom, resume_with_changes=True), (workdir, step), made)
    assert leaves["opt_state/0/hyperparams/learning_rate"] == 0.25  # as it begins
    assert "begins anew" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_frozen_layers_have_no_state_and_the_others_have(
    name: str, config: Config
) -> None:
    config = changed(config, optimizer__name=name)
    state = jax.eval_shape(lambda: state_lib.init_state(config).opt_state)
    found = {
        path[-2].key
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.ndim
    }
    assert found == {"conv2_1", "conv3_1", "conv4_1", "conv5_1", "fc8"}


def test_an_optimiser_of_ones_own_is_applied_as_optax_does() -> None:
    """To the bit, with a schedule of its own."""
    schedule = optax.cosine_decay_schedule(0.1, 5)
    whole = optax.adamw(schedule)
    config = OptimizerConfig(name="custom", schedule="constant", learning_rate=7.0)
    ours = optimizers.make_optimizer(config, custom=whole)
    rate = schedules.make_schedule(config, 10, 100)
    params = {"fc8": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3)}}
    one, other = params, params
    states = ours.init(one), whole.init(other)
    for step in range(3):
        grads = jax.tree.map(jnp.sin, one)
        direction, mine = ours.update(grads, states[0], one)
        updates, theirs = whole.update(grads, states[1], other)
        factor = rate(step)
        one = jax.tree.map(lambda w, d, r=factor: w - r * d, one, direction)
        other, states = optax.apply_updates(other, updates), (mine, theirs)
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_recipe_names_its_optimiser_and_a_run_needs_it(
    config: Config, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    custom = changed(config, optimizer__name="custom")
    made = optimizers.of_recipe(path, custom)
    assert optimizers.of_recipe(config_lib.__file__, config) is None
    for recipe, optimizer, told in (
        (custom, None, r"none is given; return an optax"),
        (custom, optax.adamw, r"expected an optax\.GradientTransformation"),
        (config, made, r"'adamw', and an optimizer of one's own is given"),
    ):
        with pytest.raises(errors.ConfigError, match=told):
            trainer.train_and_evaluate(
                recipe, tmp_path / "run", objectives.CLASSIFICATION, optimizer
            )
    assert not (tmp_path / "run").exists()
    assert Job.prepare(custom, tmp_path / "run", optimizer=made).optimizer is made


@pytest.mark.slow  # two runs
def test_a_run_by_an_optimiser_of_ones_own_is_that_of_the_same_by_name(
    config: Config, tmp_path: pathlib.Path
) -> None:
    """Two programs, each of which rounds the gradients in its own way.

    Adam makes a whole step even of a gradient that is rounding alone; with an epsilon
    above that rounding it does not.
    """
    custom = changed(config, optimizer__name="custom", num_steps=2)
    named = changed(
        config, optimizer__weight_decay=0.1, optimizer__epsilon=1e-4, num_steps=2
    )
    rate = config.optimizer.learning_rate
    whole = optax.adamw(rate, eps=1e-4, weight_decay=0.1)
    params = []
    for recipe, optimizer in ((custom, whole), (named, None)):
        workdir = tmp_path / recipe.optimizer.name
        trainer.train_and_evaluate(
            recipe, workdir, objectives.CLASSIFICATION, optimizer
        )
        folder = workdir / "checkpoints"
        with checkpoint.Checkpoints(folder, keep=3, read_only=True) as checkpoints:
            params.append(checkpoints.read(2).variables["params"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *params
    )


@pytest.mark.slow  # a step to compile for each
@pytest.mark.parametrize("name", NAMES)
def test_the_plateaus_decays_scale_every_optimisers_update(
    name: str, config: Config
) -> None:
    config = changed(
        config,
        optimizer__name=name,
        optimizer__schedule="plateau",
        optimizer__decay_factor=0.25,
        data__validation_split="train[90%:]",
    )
    devices = jax.devices()[:1]
    step = parallel.pmap_step(
        step_lib.make_train_step(config, lambda _: 1e-2),
        donate_state=False,
        devices=devices,
    )
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 256, (8, 32, 32, 1), np.uint8),
        "label": random.integers(0, 10, 8, np.int32),
        "mask": np.ones(8, bool),
        "index": np.arange(8, dtype=np.int32),
    }
    start = state_lib.draw_state(config)
    moves: list[Any] = []
    for decays in (0, 1):
        plateau = start.plateau.replace(decays=jnp.int32(decays))
        state = parallel.replicate(start.replace(plateau=plateau), devices)
        after, metrics = step(state, parallel.shard(batch, devices))
        moves.append(jax.tree.map(jnp.subtract, after.params, state.params))
        assert float(metrics["learning_rate"]) == pytest.approx(1e-2 * 0.25**decays)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(0.25 * a, b, rtol=0, atol=1e-6), *moves
    )
    assert any(leaf.any() for leaf in jax.tree.leaves(moves[0]))
