"""Gradients made smaller before the optimiser sees them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vgg_flax import parallel
from vgg_flax.config import OptimizerConfig

Clip = Callable[[Any, Any], Any]  # (gradients, params) -> gradients


def make_clips(config: OptimizerConfig, shards: parallel.FCShards) -> list[Clip]:
    """What `config` asks for, in this order, of the gradients of the global batch.

    `clip_value` cuts each number off. `adaptive_clip` scales the gradient of a unit, an
    output of a kernel or a whole vector, down to that share of the unit's norm, taken
    as at least 1e-3 (Brock et al. 2021, section 4; of every layer, as optax's does).
    `clip_norm` scales all down to that norm (Pascanu et al. 2013).

    Args:
      config: a share, value or norm of 0: no such.
      shards: how FC kernels are cut; their norms are the whole kernels'.
    """
    value, share, largest = config.clip_value, config.adaptive_clip, config.clip_norm

    def by_value(grads: Any, _: Any) -> Any:
        return jax.tree.map(lambda g: jnp.clip(g, -value, value), grads)

    def by_unit(grads: Any, params: Any) -> Any:
        def scale(g: jax.Array, g_square: jax.Array, w_square: jax.Array) -> jax.Array:
            norm = jnp.maximum(jnp.sqrt(g_square), 1e-6)
            allowed = share * jnp.maximum(jnp.sqrt(w_square), 1e-3)
            return g * jnp.broadcast_to(jnp.minimum(1, allowed / norm), g.shape)

        squares = (
            shards.add_rows(jax.tree.map(_unit_squares, tree))
            for tree in (grads, params)
        )
        return jax.tree.map(scale, grads, *squares)

    def by_norm(grads: Any, _: Any) -> Any:
        norm = shards.norm(grads)
        factor = jnp.where(norm < largest, 1, largest / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    known = ((value, by_value), (share, by_unit), (largest, by_norm))
    return [clip for limit, clip in known if limit]


def _unit_squares(x: jax.Array) -> jax.Array:
    """Sums of squares: a kernel's by output, `[1, ..., out]`; else of all, `[1]`."""
    axes = tuple(range(max(1, x.ndim - 1)))
    return jnp.sum(jnp.square(x), axes, keepdims=True)
