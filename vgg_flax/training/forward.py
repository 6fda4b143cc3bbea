"""The net as a training step goes through it, stage by stage.

All that saves memory or hides communication is in this forward pass, and its
derivative is JAX's: activations computed twice (`remat`), FC kernels that travel under
the convolutions (`overlap`), gradients that are added to earlier ones at once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vgg_flax import model, parallel
from vgg_flax.training import remat as remat_lib
from vgg_flax.training.overlap import Exchange

Forward = Callable[..., tuple[jax.Array, Any]]


def make_forward(
    net: model.VGG,
    shards: parallel.FCShards = parallel.UNCUT,
    *,
    remat: bool = False,
) -> Forward:
    """The training forward pass of one replica.

    Args:
      net: the module.
      shards: how the FC kernels of `params` are cut.
      remat: whether stages compute their activations twice, to save memory.

    Returns:
      `forward(params, totals, batch_stats, images, index, key)` ->
      `(outputs, batch_stats)`: the outputs `[batch, num_classes]` of normalised
      images, and the moved statistics. `index` and `key` choose dropout's masks.
      The gradient with respect to `params` has `totals` added, a pytree of the same
      structure (None: nothing), each leaf as soon as it is known, so that a sum over
      micro-batches needs no room for two gradients.
    """

    def forward(
        params: Any,
        totals: Any,
        batch_stats: Any,
        images: jax.Array,
        index: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, Any]:
        def run(part: int, params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            return net.apply(
                {"params": params, "batch_stats": _part(batch_stats, part)},
                x,
                (part,),
                train=True,
                example_index=index,
                rngs={"dropout": key},
                mutable=["batch_stats"],
                method="walk",
            )

        def enter(x: jax.Array, own: Any, totals: Any) -> tuple[jax.Array, Any]:
            moving = {k: v for k, v in own.items() if k not in net.frozen}
            x, moving = _enter(x, moving, totals)
            return x, {**own, **moving}

        exchange = Exchange(shards, params, totals)
        x, moved = images, {}
        for stage in model.STAGES:
            x = exchange.begin(stage, x)
            x, own = enter(x, _part(params, stage), _part(totals, stage))
            go = functools.partial(run, stage)
            if remat:
                go = remat_lib.rematerialize(
                    go, None if batch_stats else remat_lib.IMAGES
                )
            x, update = go(own, x)
            moved |= update.get("batch_stats", {})
            exchange.end(stage)
        head = model.PARTS[-1]
        x, own = exchange.arrive(x, _part(params, head))
        x, own = enter(x, own, exchange.without_kernels(_part(totals, head)))
        scores, _ = run(head, own, x)
        return scores.mean(axis=(1, 2)), moved

    return forward


@jax.custom_vjp
def _enter(x: jax.Array, params: Any, totals: Any) -> tuple[jax.Array, Any]:
    """Forward: nothing. Backward: adds `totals` to the params' gradients at once.

    `totals` may lack leaves of `params`, and be None.
    """
    return x, params


def _enter_backward(totals: Any, gradients: Any) -> Any:
    g, of_params = gradients
    if jax.tree.leaves(totals):  # the barrier frees a gradient's memory before the next
        g, of_params = jax.lax.optimization_barrier((g, _plus(totals, of_params)))
    return g, of_params, jax.tree.map(jnp.zeros_like, totals)


_enter.defvjp(lambda x, params, totals: ((x, params), totals), _enter_backward)


def _plus(totals: Any, gradients: Any) -> Any:
    return {
        layer: {
            name: totals[layer][name] + g if name in totals.get(layer, {}) else g
            for name, g in leaves.items()
        }
        for layer, leaves in gradients.items()
    }


def _part(tree: Any, part: int) -> Any:
    return {k: v for k, v in (tree or {}).items() if model.part_of(k) == part}
