"""Every optimiser and clipping does with cut FC kernels as with whole ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_flax import parallel
from vgg_flax.config import OptimizerConfig
from vgg_flax.training import optimizers

SHAPES = {  # 18 rows, which 4 replicas do not divide; a wide kernel; a tall one
    "fc6": (3, 3, 2, 10),
    "fc7": (1, 1, 10, 14),
    "fc8": (1, 1, 14, 3),
}
CASES = {
    "sgd": {"nesterov": True},
    "rmsprop": {},
    "adamw": {"decay_norms_and_biases": False},
    "lamb": {},
    "lion": {},
    "muon": {"momentum": 0.95, "nesterov": True},
    "sgd, clipped by norm": {"clip_norm": 1.0},
    "sgd, clipped by unit": {"adaptive_clip": 0.1},
    "muon, clipped in each way": {
        "clip_value": 0.5,
        "adaptive_clip": 0.1,
        "clip_norm": 1.0,
    },
}


def draw(seed: int) -> Any:
    random = np.random.default_rng(seed)
    shapes: dict[str, Any] = {"conv1_1": (3, 3, 2, 4), **SHAPES}
    return {
        layer: {
            "kernel": random.normal(size=shape),
            "bias": random.normal(size=shape[-1:]),
        }
        for layer, shape in shapes.items()
    }


def cut(tree: Any, replicas: int) -> Any:
    """Kernels of FC layers as rows of each replica, by NumPy: `[N, rows, out]`."""

    def rows(path: Any, x: Any) -> Any:
        if path[-2:-1] and getattr(path[-2], "key", "") in SHAPES and x.ndim > 1:
            x = np.reshape(x, (-1, x.shape[-1]))
            x = np.pad(x, ((0, -len(x) % replicas), (0, 0)))
            return x.reshape(replicas, -1, x.shape[-1])
        return np.asarray(x)

    return jax.tree_util.tree_map_with_path(rows, tree)


def trained(config: OptimizerConfig, replicas: int, is_cut: bool) -> Any:
    """Params after three updates, cut kernels as rows."""
    shapes = SHAPES if is_cut else {}
    shards = parallel.FCShards(shapes, replicas, jnp.float64)
    transformation = optimizers.make_optimizer(config, shards)

    def step(state: Any, _: Any) -> Any:
        params, kept, grads = state
        direction, kept = transformation.update(grads, kept, params)
        params = jax.tree.map(lambda w, d: w - 0.1 * d, params, direction)
        return (params, kept, grads), {"norm": shards.norm(direction)}

    params = draw(0)
    state = (params, optimizers.make_optimizer(config).init(params), draw(1))
    if is_cut:
        state = cut(state, replicas)
    mapped = parallel.pmap_step(
        step,
        donate_state=True,
        state_axes=shards.axes(state),
        devices=jax.devices()[:replicas],
    )
    for number in range(1, 4):
        grads = draw(number)
        state = (*state[:2], cut(grads, replicas) if is_cut else grads)
        state, _ = mapped(state, np.zeros((replicas, 1)))
    return jax.device_get(state[0])


FEW = ("lamb", "sgd, clipped by norm", "muon, clipped in each way")  # plain `pytest`'s


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in CASES],
)
def test_a_cut_kernel_is_updated_as_a_whole_one(name: str) -> None:
    config = OptimizerConfig(name=name.split(",")[0], weight_decay=0.1, **CASES[name])
    with jax.enable_x64(True):
        whole = cut(trained(config, 1, is_cut=False), 4)
        rows = trained(config, 4, is_cut=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), rows, whole
    )
