"""SGD with momentum and weight decay, learning-rate schedules, and the plateau rule."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vgg_flax.config import OptimizerConfig
from vgg_flax.training import selection


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Turns gradients into a descent direction; the step multiplies by -learning rate.

    Coupled (section 3.1): `v = momentum * v + (gradient + weight_decay * w)`.
    Decoupled (Loshchilov and Hutter 2019): `weight_decay * w` is added after the
    momentum. Either way the update is `w -= learning_rate * v`, times the factor that
    `layer_rates` have for the layer.
    """
    mask = None if config.decay_norms_and_biases else _is_kernel
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    momentum = optax.trace(config.momentum, nesterov=config.nesterov)
    parts = (momentum, decay) if config.decoupled_weight_decay else (decay, momentum)
    if config.layer_rates:
        parts += (optax.stateless(functools.partial(_by_layer, config.layer_rates)),)
    return optax.chain(*parts)


def _by_layer(
    layer_rates: tuple[tuple[str, float], ...], updates: Any, _: optax.Params | None
) -> Any:
    """Each layer's direction, times its factor."""
    factors = selection.rates(layer_rates, updates)
    return {
        layer: jax.tree.map(
            lambda d, f=factors[layer]: d * jnp.asarray(f, d.dtype), leaves
        )
        for layer, leaves in updates.items()
    }


def _is_kernel(params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )
