"""The exponential moving average (EMA) of what a run trains."""

from typing import Any

import jax
import jax.numpy as jnp

from vgg_flax.config import AveragingConfig

Average = dict[str, Any]  # "params", "batch_stats": of trained layers; {}: none is kept


def start(config: AveragingConfig, params: Any, batch_stats: Any) -> Average:
    """The average of one state: that state, in buffers of its own; {} without one.

    Args:
      config: of the run.
      params: those that are trained, by layer.
      batch_stats: those that move.
    """
    if not config.decay:
        return {}
    return jax.tree.map(
        lambda x: jnp.array(x, copy=True),
        {"params": params, "batch_stats": batch_stats},
    )


def update(
    config: AveragingConfig,
    average: Average,
    params: Any,
    batch_stats: Any,
    step: jax.Array,
) -> Average:
    """The average after the update number `step`, from 1 on.

    Every `every_steps` it keeps the share `min(decay, (1 + step) / (10 + step)) **
    every_steps` of itself: young averages forget how the params were drawn. Of equal
    states it is that state, to the bit.
    """
    if not average:
        return average
    young = (1 + step) / (10 + step)
    kept = jnp.minimum(config.decay, young) ** config.every_steps

    def move(average: Average) -> Average:
        return jax.tree.map(
            lambda old, new: old + (1 - kept).astype(old.dtype) * (new - old),
            average,
            {"params": params, "batch_stats": batch_stats},
        )

    is_due = step % config.every_steps == 0
    return jax.lax.cond(is_due, move, lambda average: average, average)
