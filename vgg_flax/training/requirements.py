"""What a run needs: a config that fits the devices, its net and its objective."""

import jax

from vgg_flax import config as config_lib
from vgg_flax.config import Config
from vgg_flax.errors import ConfigError
from vgg_flax.training import objectives, selection
from vgg_flax.training import state as state_lib
from vgg_flax.training.objectives import Objective


def check_net(config: Config, devices: int) -> None:
    """Sees that a checked config fits these devices, JAX's settings and its own net.

    Raises:
      ConfigError: a batch that does not divide over the devices, float64 where JAX
        has none, or images that are too small for the net.
    """
    pieces = config.optimizer.accumulation_steps
    of_what = f"{devices} device(s)"
    config_lib.check_batch(
        "data.eval_batch_size", config.data.eval_batch_size, devices, of_what
    )
    if pieces > 1:
        of_what += f" x {pieces} accumulation steps"
    config_lib.check_batch(
        "data.batch_size", config.data.batch_size, devices * pieces, of_what
    )
    net = state_lib.make_model(config.model)
    selection.check(config, net)
    if net.param_dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError(
            "config.model.dtype='float64' needs JAX's 64-bit mode, which is off; "
            "set the environment variable JAX_ENABLE_X64=1"
        )
    sides = [("", config.data.crop_size)] + [
        (f"_by_epoch, epoch {epoch:g}:", side)
        for epoch, side in config.data.crop_size_by_epoch
    ]
    for where, side in sides:
        if side < net.smallest_image:
            raise ConfigError(
                f"config.data.crop_size{where}={side} is smaller than the net "
                f"can take, {net.smallest_image} pixels with config.model.fc6_window="
                f"{config.model.fc6_window}; raise it, or use "
                f"--config.model.fc6_window={max(1, side // 32)}"
            )


def check_targets(config: Config, objective: Objective) -> None:
    """Sees that what a config makes of labels is learnt, and has a value a class.

    Raises:
      ConfigError: the objective has targets of its own, or there are other classes.
    """
    settings, classes = config.regularization, config.model.num_classes
    wanted = {
        "regularization.label_smoothing": settings.label_smoothing,
        "regularization.mixup_alpha": settings.mixup_alpha,
        "regularization.cutmix_alpha": settings.cutmix_alpha,
        "regularization.class_weights": settings.class_weights,
        "distillation.teacher": config.distillation.teacher,
    }
    for name, value in wanted.items():
        if value and objective.name != objectives.CLASSIFICATION.name:
            raise ConfigError(
                f"config.{name}={value!r} is about the labels of classes, and the "
                f"objective {objective.name!r} has targets of its own; leave it out"
            )
    weights = settings.class_weights
    if weights and (len(weights) != classes or not sum(weights)):
        raise ConfigError(
            f"config.regularization.class_weights={weights} has {len(weights)} values "
            f"for {classes} classes; expected one a class, not all of them 0"
        )
