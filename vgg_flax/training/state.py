"""The training state, and the net that a config describes."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vgg_flax import model, parallel
from vgg_flax.config import Config, ModelConfig
from vgg_flax.errors import ConfigError
from vgg_flax.training import averaging, optimizers, schedules, selection


class TrainState(struct.PyTreeNode):
    """All that a step changes. Random keys and the data position are not here:
    they follow from the seed and `step`.
    """

    step: jax.Array  # int32, updates made so far
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    plateau: schedules.Plateau
    ema: averaging.Average = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def averaged_variables(self) -> dict[str, Any]:
        """The same with the average of what is trained; without one, as they are."""
        return {k: v | self.ema.get(k, {}) for k, v in self.variables.items()}


def make_model(config: ModelConfig) -> model.VGG:
    """The net that `config` describes.

    Raises:
      ConfigError: no such variant, or its number of classes is the data's.
    """
    if not config.num_classes:
        raise ConfigError(
            "config.model.num_classes=0 takes the number from the data's classes, and "
            "here are none; give a number"
        )
    fields = dataclasses.asdict(config)
    across = fields.pop("batch_norm_across_replicas")
    try:
        fields["variant"] = model.variant_name(config.variant)
    except ValueError as error:
        raise ConfigError(f"config.model.variant: {error}") from error
    axis_name = parallel.AXIS_NAME if across else None
    return model.VGG(**fields, batch_norm_axis=axis_name)


def init_state(
    config: Config, optimizer: optax.GradientTransformation | None = None
) -> TrainState:
    """A new state, from `config.seed`; pass it to `jax.eval_shape` for shapes only.

    Args:
      config: the run.
      optimizer: of one's own, where `config.optimizer` has the name "custom".
    """
    net = make_model(config.model)
    side = net.smallest_image  # params don't depend on the size
    images = jnp.zeros((1, side, side, net.in_channels), net.param_dtype)
    variables = jax.jit(net.init)(jax.random.key(config.seed), images)
    # flax starts the statistics as float32, whatever the params are.
    batch_stats = jax.tree.map(
        lambda x: x.astype(net.param_dtype), variables.get("batch_stats", {})
    )
    trained, _ = selection.split(config, variables["params"])
    transformation = optimizers.make_optimizer(config.optimizer, custom=optimizer)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=batch_stats,
        opt_state=transformation.init(trained),
        plateau=schedules.init_plateau(),
    )
    return with_average(config, state)


def with_average(config: Config, state: TrainState) -> TrainState:
    """`state` with an average that begins with it, if the config has one."""
    parts = (state.params, state.batch_stats)
    trained = (selection.split(config, part)[0] for part in parts)
    return state.replace(ema=averaging.start(config.averaging, *trained))


def draw_state(
    config: Config, optimizer: optax.GradientTransformation | None = None
) -> TrainState:
    """`init_state`, compiled, on one device.

    Random numbers are a large program that runs once. On a CPU the compiler thinks of
    it for 2.5 s instead of 10 with a recipe of eleven kernels, and what is drawn is the
    same to the bit (at level 0 it would not be), in the same time. Who sets the level
    in XLA_FLAGS has that.
    """
    level = "xla_backend_optimization_level"
    is_free = jax.default_backend() == "cpu" and level not in os.environ.get(
        "XLA_FLAGS", ""
    )
    options = {level: 1} if is_free else None
    return jax.jit(lambda: init_state(config, optimizer), compiler_options=options)()


def make_shards(
    config: Config, replicas: int, devices: parallel.Devices | None = None
) -> parallel.FCShards:
    """How `config` cuts the FC kernels over `replicas`."""
    if not config.shard_fc or replicas == 1:
        return parallel.UNCUT
    params = jax.eval_shape(lambda: init_state(config)).params
    shapes = {k: v["kernel"].shape for k, v in params.items() if k.startswith("fc")}
    exchange = None if config.fc_exchange == "auto" else config.fc_exchange
    dtype = jnp.dtype(config.model.dtype)
    return parallel.FCShards(shapes, replicas, dtype, devices, exchange)
