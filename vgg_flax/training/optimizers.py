"""SGD with momentum and weight decay, learning-rate schedules, and the plateau rule."""

import jax
import optax

from vgg_flax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Turns gradients into a descent direction; the step multiplies by -learning rate.

    Coupled (section 3.1): `v = momentum * v + (gradient + weight_decay * w)`.
    Decoupled (Loshchilov and Hutter 2019): `weight_decay * w` is added after the
    momentum. Either way the update is `w -= learning_rate * v`.
    """
    mask = None if config.decay_norms_and_biases else _is_kernel
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    momentum = optax.trace(config.momentum, nesterov=config.nesterov)
    parts = (momentum, decay) if config.decoupled_weight_decay else (decay, momentum)
    return optax.chain(*parts)


def _is_kernel(params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )
