"""FC kernels cut over replicas: nothing of the training changes but where they are."""

import collections
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed

from tests import boxes
from vgg_flax import config as config_lib
from vgg_flax import parallel
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.training import objectives
from vgg_flax.training import state as state_lib
from vgg_flax.training import step as step_lib

OBJECTIVES = {
    "classification": objectives.CLASSIFICATION,
    "boxes": boxes.BOXES,
}


pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture
def recipe(tiny_config: config_lib.Config) -> config_lib.Config:
    """Widths that no number of devices divides, in float64."""
    return changed(
        tiny_config,
        model__variant="vgg8_bn",
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


def train(recipe: config_lib.Config, count: int) -> tuple[list[Any], Any]:
    """Three steps on `count` devices: metrics of each step, and the whole state."""
    objective = OBJECTIVES[recipe.objective]
    devices = jax.devices()[:count]
    shards = state_lib.make_shards(recipe, count, devices)
    assert bool(shards.shapes) == recipe.shard_fc
    state = jax.jit(lambda: state_lib.init_state(recipe))()
    step = parallel.pmap_step(
        step_lib.make_train_step(recipe, lambda _: 0.05, objective, shards),
        donate_state=True,
        state_axes=shards.axes(state),
        devices=devices,
    )
    state = shards.place(state)
    told = []
    for number in range(3):
        state, metrics = step(state, parallel.shard(batch(number), devices))
        told.append({name: float(value) for name, value in metrics.items()})
    return told, jax.device_get(shards.fetch(state))


def expected(recipe: config_lib.Config) -> tuple[list[dict[str, float]], Any]:
    """The same without the step's code: one device, the whole net, SGD by hand."""
    objective = OBJECTIVES[recipe.objective]
    net = state_lib.make_model(recipe.model).clone(batch_norm_axis=None)
    state = jax.jit(lambda: state_lib.init_state(recipe))()
    params, statistics = state.params, state.batch_stats
    velocity = jax.tree.map(jnp.zeros_like, params)
    preprocessing = Preprocessing.of(recipe.data)

    @jax.jit
    def gradients(params: Any, statistics: Any, piece: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs, moved = net.apply(
                {"params": params, "batch_stats": statistics},
                preprocessing.normalize(piece["image"], dtype=np.float64),
                train=True,
                example_index=piece["index"],
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            sums = objective(outputs, piece)
            return sums["loss"], (sums, moved["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    def norm(tree: Any) -> float:
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        return float(np.linalg.norm(flat))

    pieces, decay = recipe.optimizer.accumulation_steps, recipe.optimizer.weight_decay
    told = []
    for number in range(3):
        key = jax.random.fold_in(jax.random.key(recipe.seed), number)
        whole, sums, total = batch(number), collections.Counter(), None
        for k in range(pieces):  # each device's k-th, (k + pieces)-th, ... example
            piece = jax.tree.map(lambda x, k=k: x[k::pieces], whole)
            g, (more, statistics) = gradients(params, statistics, piece, key)
            total = g if total is None else jax.tree.map(jnp.add, total, g)
            sums.update({name: float(value) for name, value in more.items()})
        total = jax.tree.map(lambda g, n=sums["count"]: g / n, total)
        velocity = jax.tree.map(
            lambda v, g, w: 0.9 * v + g + decay * w, velocity, total, params
        )
        params = jax.tree.map(lambda w, v: w - 0.05 * v, params, velocity)
        norms = {"gradient_norm": norm(total), "parameter_norm": norm(params)}
        told.append({**sums, **norms, "learning_rate": 0.05})
    return told, (params, statistics)


def assert_close(one: Any, other: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
        one,
        other,
    )


# How the FC kernels travel, by the number of replicas: whole, by neighbours in two and
# three rounds, in one piece because of the number, in one piece by choice.
FORWARDS = {
    "whole": (2, {"shard_fc": False}),
    "two rounds": (4, {"shard_fc": True, "fc_exchange": "neighbours"}),
    "three rounds": (8, {"shard_fc": True, "fc_exchange": "neighbours"}),
    "no power of two": (3, {"shard_fc": True, "fc_exchange": "neighbours"}),
    "scatter": (4, {"shard_fc": True, "fc_exchange": "auto"}),
}
FEW = [  # run by plain `pytest`
    ("three rounds", "boxes", True, 2),
]
ALL = [
    *itertools.product(
        ("whole", "three rounds"), OBJECTIVES, (False, True), (1, 2)
    ),  # the two forwards; of the other exchanges what each objective meets
    *itertools.product(
        ("two rounds", "no power of two", "scatter"), ["classification"], [False], [2]
    ),
    *itertools.product(
        ("two rounds", "no power of two", "scatter"), ["boxes"], [True], [1]
    ),
]


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, int], Any]:
    """`expected` by objective and pieces, as they are asked for."""
    return {}


@pytest.mark.parametrize(
    ("forward", "objective", "remat", "pieces"),
    [pytest.param(*one, marks=[] if one in FEW else [pytest.mark.slow]) for one in ALL],
)
def test_every_forward_gives_the_plain_nets_updates(
    forward: str,
    objective: str,
    remat: bool,
    pieces: int,
    recipe: config_lib.Config,
    references: dict[tuple[str, int], Any],
) -> None:
    """In float64, with BatchNorm across replicas and dropout, three steps."""
    count, fields = FORWARDS[forward]
    recipe = changed(
        recipe,
        objective=objective,
        model__num_classes=4 if objective == "boxes" else 10,
        optimizer__accumulation_steps=pieces,
    )
    with jax.enable_x64(True):
        if (objective, pieces) not in references:
            references[objective, pieces] = expected(recipe)
        told, state = train(changed(recipe, remat=remat, **fields), count)
    told_there, (params, statistics) = references[objective, pieces]
    assert told[0]["count"] < 48  # some are masked
    assert_close(told, told_there)
    assert_close((state.params, state.batch_stats), (params, statistics))


def test_what_is_exchanged_depends_on_the_devices_unless_forced(
    recipe: config_lib.Config,
) -> None:
    recipe = changed(recipe, shard_fc=True, model__dtype="float32")
    chosen = {
        how: state_lib.make_shards(changed(recipe, fc_exchange=how), 8)
        for how in ("auto", "neighbours", "scatter")
    }
    assert [chosen[how].rounds for how in chosen] == [1, 3, 1]
    assert "one reduce-scatter" in chosen["auto"].description
    assert "8 replicas" in chosen["neighbours"].description


@pytest.mark.slow  # the whole product above has remat, and more
def test_remat_without_batch_norm_goes_some_images_at_a_time(
    recipe: config_lib.Config,
) -> None:
    recipe = changed(recipe, model__variant="vgg8")
    frugal = changed(recipe, shard_fc=True, remat=True)
    with jax.enable_x64(True):
        assert_close(train(recipe, 1), train(frugal, 2))
        text = jax.make_jaxpr(
            step_lib.make_train_step(frugal, lambda _: 0.05),
            axis_env=[(parallel.AXIS_NAME, 1)],
        )(jax.eval_shape(lambda: state_lib.init_state(frugal)), batch(0))
    assert "3,16,32,32,1" in str(text)  # 48 images


@pytest.mark.slow  # as the product above
def test_a_head_without_hidden_layers_is_cut_too(recipe: config_lib.Config) -> None:
    recipe = changed(recipe, model__variant="vgg8", model__head="gap")
    with jax.enable_x64(True):
        assert_close(train(recipe, 2), train(changed(recipe, shard_fc=True), 2))


@pytest.mark.slow  # a step to compile for each, twice
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw", "lamb", "lion", "muon"])
def test_every_optimiser_and_clipping_trains_the_same_with_cut_kernels(
    name: str, recipe: config_lib.Config
) -> None:
    """Within the whole step; biases before BatchNorm would have noise for gradients."""
    recipe = changed(
        recipe,
        model__conv_bias=False,
        optimizer__name=name,
        optimizer__adaptive_clip=0.1,
        optimizer__clip_norm=1.0,
    )
    with jax.enable_x64(True):
        whole = train(recipe, 1)
        rows = train(changed(recipe, shard_fc=True), 4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), rows, whole
    )


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
    recipe = changed(recipe, fc_exchange="neighbours")
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


def test_what_is_placed_from_the_host_is_updated_in_place() -> None:
    """XLA leaves memory of NumPy's as it is, and would take as much again."""
    raw = np.ones(1 << 16, np.float32)
    start = -raw.ctypes.data % 64 // 4  # so aligned it would be taken as it is
    placed = parallel.UNCUT.place(raw[start : start + 1024])
    step = parallel.pmap_step(
        lambda state, batch: (state + batch.sum(), batch.sum()),
        donate_state=True,
        devices=jax.devices()[:1],
    )
    pointer = placed.addressable_data(0).unsafe_buffer_pointer()
    state, _ = step(placed, jnp.ones((1, 1)))
    assert state.addressable_data(0).unsafe_buffer_pointer() == pointer
    assert placed.is_deleted()
    assert (raw == 1).all()
