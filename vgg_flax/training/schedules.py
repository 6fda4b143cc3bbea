"""Learning-rate schedules, and the plateau rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from vgg_flax.config import OptimizerConfig

Scalar = jax.Array | np.ndarray


def make_schedule(
    config: OptimizerConfig, steps_per_epoch: float, total_steps: int, shift: int = 0
) -> optax.Schedule:
    """Learning rate as a function of the step (without the plateau's factor).

    Args:
      config: `schedule` and what it reads. A custom optimiser has a learning rate of
        its own: this is a factor of its updates, at most 1.
      steps_per_epoch: need not be whole.
      total_steps: where polynomial, cosine and one_cycle reach `final_factor`.
      shift: how many steps an epoch's end comes sooner: `Plan.shift`.
    """
    if shift:
        unshifted = make_schedule(config, steps_per_epoch, total_steps + shift)
        return lambda step: unshifted(step + shift)
    peak = 1.0 if config.name == "custom" else config.learning_rate
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    boundaries: dict[int, float] = {}
    for epoch in config.decay_epochs:  # several may fall on one step
        step = max(0, round(epoch * steps_per_epoch) - warmup_steps)
        boundaries[step] = boundaries.get(step, 1.0) * config.decay_factor
    first, last = config.warmup_factor * peak, config.final_factor * peak
    decay_steps = max(1, total_steps - warmup_steps)
    fall = optax.cosine_decay_schedule(peak, decay_steps, config.final_factor)
    main = {
        "constant": lambda: optax.constant_schedule(peak),
        "plateau": lambda: optax.constant_schedule(peak),
        "step": lambda: optax.piecewise_constant_schedule(peak, boundaries),
        "exponential": lambda: (
            lambda step: jnp.maximum(
                peak * config.decay_factor ** (step / steps_per_epoch), last
            )
        ),
        "polynomial": lambda: optax.polynomial_schedule(
            peak, last, config.decay_power, decay_steps
        ),
        "cosine": lambda: fall,
        "one_cycle": lambda: fall,
    }[config.schedule]()
    if not warmup_steps:
        return main
    rise = optax.linear_schedule(first, peak, warmup_steps)
    if config.schedule == "one_cycle":
        rise = _cosine_rise(first, peak, warmup_steps)
    return optax.join_schedules([rise, main], [warmup_steps])


def _cosine_rise(first: float, peak: float, steps: int) -> optax.Schedule:
    below = optax.cosine_decay_schedule(peak - first, steps)
    return lambda step: peak - below(step)


class Plateau(struct.PyTreeNode):
    """The paper's rule: divide the rate when validation accuracy stops improving.

    Part of the training state, so that a resumed run decays where it would have.
    """

    best: Scalar  # float32, the highest score on validation so far
    stale: Scalar  # int32, validations since then, or since the last decay
    decays: Scalar  # int32, times the rate was multiplied by decay_factor


def init_plateau() -> Plateau:
    """Nothing seen, nothing decayed."""
    return Plateau(  # each with a buffer of its own, which a step can be given
        best=jnp.full((), -jnp.inf, jnp.float32),
        stale=jnp.zeros((), jnp.int32),
        decays=jnp.zeros((), jnp.int32),
    )


def update_plateau(config: OptimizerConfig, plateau: Plateau, score: float) -> Plateau:
    """The state after a validation with this `score`, of which more is better.

    Its values are on the host.
    """
    plateau = jax.device_get(plateau)
    best, stale, decays = float(plateau.best), int(plateau.stale), int(plateau.decays)
    score = float(np.float32(score))  # as `best` is kept, or an equal one looks better
    if score > best:
        best, stale = score, 0
    else:
        stale += 1
    if stale >= config.plateau_patience and decays < config.plateau_max_decays:
        stale, decays = 0, decays + 1
    return Plateau(
        best=np.asarray(best, np.float32),
        stale=np.asarray(stale, np.int32),
        decays=np.asarray(decays, np.int32),
    )


def plateau_factor(config: OptimizerConfig, plateau: Plateau) -> jax.Array | float:
    """What the schedule is multiplied by; 1 under any other schedule."""
    if config.schedule != "plateau":
        return 1.0
    return config.decay_factor ** jnp.asarray(plateau.decays, jnp.float32)
