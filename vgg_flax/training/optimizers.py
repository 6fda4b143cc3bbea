"""Optimisers: gradients in, a direction out, of optax's parts or one's own."""

import functools
import os
import runpy
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vgg_flax import parallel
from vgg_flax.config import Config, OptimizerConfig
from vgg_flax.errors import ConfigError
from vgg_flax.training import clipping, muon, selection

_BETA2 = {"lion": 0.99, "rmsprop": 0.99}  # as their papers and torch have it


def make_optimizer(
    config: OptimizerConfig,
    shards: parallel.FCShards = parallel.UNCUT,
    custom: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Turns gradients into a descent direction; the step multiplies by -learning rate.

    Coupled weight decay (section 3.1 of the paper, for sgd): `v = momentum * v +
    (gradient + weight_decay * w)`. Decoupled (Loshchilov and Hutter 2019):
    `weight_decay * w` is added to what the optimiser makes of the gradients. Either way
    the update is `w -= learning_rate * v`, times the factor that `layer_rates` have for
    the layer. Clipping comes first, and has no state.

    Args:
      config: the optimiser by name, its settings, and what is clipped.
      shards: how FC kernels are cut: every optimiser does as if they were whole.
      custom: the one of the name "custom", whole: its updates are what the params
        change by, and the direction is their opposite.

    Raises:
      ConfigError: as `check` has them.
    """
    check(custom, config.name)
    parts = _parts(config, shards, custom)
    if config.layer_rates:
        parts += (optax.stateless(functools.partial(_by_layer, config.layer_rates)),)
    chain = optax.chain(*parts)
    clips = clipping.make_clips(config, shards)
    if not clips:
        return chain

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        for clip in clips:
            updates = clip(updates, params)
        return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def _parts(
    config: OptimizerConfig,
    shards: parallel.FCShards,
    custom: optax.GradientTransformation | None,
) -> tuple[optax.GradientTransformation, ...]:
    """The optimiser without clipping and layers' rates, in its order."""
    if custom is not None:
        return custom, optax.scale(-1.0)
    mask = None if config.decay_norms_and_biases else _is_kernel
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    momentum = optax.trace(config.momentum, nesterov=config.nesterov)
    beta1, beta2, epsilon = config.beta1, config.beta2, config.epsilon
    if beta2 is None:
        beta2 = _BETA2.get(config.name, 0.999)
    if config.name in ("sgd", "rmsprop"):
        parts = (momentum,)
        if config.name == "rmsprop":
            rms = optax.scale_by_rms(beta2, epsilon, eps_in_sqrt=False)
            parts = (rms, momentum)
        return (*parts, decay) if config.decoupled_weight_decay else (decay, *parts)
    adam = optax.scale_by_adam(beta1, beta2, epsilon)
    if config.name == "adamw":
        return adam, decay
    if config.name == "lamb":
        trust = optax.stateless(functools.partial(_by_trust_ratio, shards))
        return adam, decay, trust
    if config.name == "lion":
        return optax.scale_by_lion(beta1, beta2), decay
    kernels = muon.scale_by_muon(config.momentum, config.nesterov, epsilon, shards)
    return optax.partition({"muon": kernels, "adam": adam}, _muon_or_adam), decay


def of_recipe(path: str | os.PathLike[str], config: Config) -> Any:
    """What the recipe's `get_optimizer(config)` returns; without one, None."""
    get_optimizer = runpy.run_path(os.fspath(path)).get("get_optimizer")
    return get_optimizer(config) if get_optimizer else None


def check(optimizer: Any, name: str) -> None:
    """Sees that an optimiser is given where the config's is a custom one, and only so.

    Raises:
      ConfigError: it is missing, not wanted, or none of optax.
    """
    if optimizer is None:
        if name == "custom":
            raise ConfigError(
                "config.optimizer.name='custom', and none is given; return an "
                "optax.GradientTransformation from get_optimizer(config), beside "
                "get_config() in the recipe, or use another name"
            )
    elif not isinstance(optimizer, optax.GradientTransformation):
        raise ConfigError(
            f"the optimizer is {optimizer!r}; expected an "
            "optax.GradientTransformation, which a recipe returns from "
            "get_optimizer(config)"
        )
    elif name != "custom":
        raise ConfigError(
            f"config.optimizer.name={name!r}, and an optimizer of one's own is given; "
            "say name='custom' in the config, beside get_optimizer(config) in the "
            "recipe"
        )


def _by_trust_ratio(shards: parallel.FCShards, updates: Any, params: Any) -> Any:
    """LAMB's: each leaf as long as its weights, where neither is 0."""

    def scale(u: jax.Array, u_square: jax.Array, w_square: jax.Array) -> jax.Array:
        u_norm, w_norm = jnp.sqrt(u_square), jnp.sqrt(w_square)
        is_any = (u_norm > 0) & (w_norm > 0)
        return u * jnp.where(is_any, w_norm / jnp.where(is_any, u_norm, 1), 1)

    squares = (
        shards.add_rows(jax.tree.map(lambda x: jnp.sum(jnp.square(x)), tree))
        for tree in (updates, params)
    )
    return jax.tree.map(scale, updates, *squares)


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


def _muon_or_adam(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda yes: "muon" if yes else "adam", _is_kernel(params))
