"""A trained net as the teacher of another (Hinton et al. 2015)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vgg_flax import config as config_lib
from vgg_flax import console, parallel
from vgg_flax.config import Config
from vgg_flax.errors import ConfigError, VGGFlaxError
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import VGG
from vgg_flax.net import Net
from vgg_flax.training import borrowing


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a step needs of the teacher besides its variables.

    Attributes:
      model: the linen module.
      preprocessing: the teacher's own pixels.
    """

    model: VGG
    preprocessing: Preprocessing

    def __call__(self, variables: Any, pixels: jax.Array) -> jax.Array:
        """Logits `[batch, classes]` of pixels in [0, 1], as they are in test."""
        images = self.preprocessing.standardize(pixels.astype(self.model.param_dtype))
        logits: Any = self.model.apply(variables, images)
        return jax.lax.stop_gradient(logits)


def loss(
    logits: jax.Array, taught: jax.Array, mask: jax.Array, temperature: float
) -> jax.Array:
    """`T^2 * KL(softmax(taught / T) || softmax(logits / T))`, summed over examples.

    Hinton et al. 2015, section 2, where T^2 keeps gradients as large as the labels'.
    It is 0, as is its gradient, where both are the same.

    Args:
      logits: `[batch, classes]`, of the net that learns.
      taught: likewise, of the teacher.
      mask: `[batch]`, bool: which examples count.
      temperature: T.

    Returns:
      A scalar, in nats.
    """
    mask = mask[:, None]
    student, teacher = (
        jax.nn.log_softmax(jnp.where(mask, x.astype(logits.dtype), 0) / temperature)
        for x in (logits, taught)
    )
    return temperature**2 * (jnp.exp(teacher) * (teacher - student)).sum()


def compile_step(
    make: Callable[..., Any], net: Net, state: Any, axes: Any, batch: Any
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The mapped training step with a teacher, whose variables stay on the devices.

    Args:
      make: `step.make_train_step`, but for the teacher.
      net: the teacher.
      state: placed, that a step takes.
      axes: of the state, as `parallel.pmap_step` has them.
      batch: shapes.

    Returns:
      `(state, batch) -> (state, metrics)`, as without one.
    """
    step = make(teacher=Teacher(net.model, net.preprocessing))
    # Beside the batch, not in the state: what is donated is gone, and the net's may be
    # these very arrays.
    variables = parallel.replicate(net.variables)
    mapped = parallel.pmap_step(
        lambda state, both: step(state, *both),
        donate_state=True,
        state_axes=axes,
        batch_axes=(0, None),
    )
    compiled = parallel.compile_step(mapped, state, (batch, variables))
    return lambda state, batch: compiled(state, (batch, variables))


def load(config: Config, classes: int) -> Net | None:
    """The net in `config.distillation.teacher`; None: there is none.

    Args:
      config: checked.
      classes: of the net that learns.

    Raises:
      ConfigError: it can't be loaded, has other classes or channels, or takes larger
        images only.
    """
    name = config.distillation.teacher
    if not name:
        return None
    try:
        net = borrowing.load(name, config.data, ema=config.distillation.teacher_ema)
    except VGGFlaxError as error:
        ema = ", with teacher_ema=True" * config.distillation.teacher_ema
        raise ConfigError(f"config.distillation.teacher{ema}: {error}") from error
    model = net.model
    side = min(data.crop_size for _, data in config_lib.training_stages(config.data))
    why = net.card.no_classes()
    if why is None and model.num_classes != classes:
        why = f"it has {model.num_classes} classes, and the net that learns {classes}"
    if why is None and model.in_channels != config.model.in_channels:
        why = (
            f"it takes {model.in_channels} channels, and the net that learns "
            f"{config.model.in_channels}"
        )
    if why is None and model.smallest_image > side:
        why = (
            f"it takes images of {model.smallest_image} pixels or more, and "
            f"training's smallest views have {side} (config.data.crop_size, "
            "crop_size_by_epoch)"
        )
    if why is not None:
        raise ConfigError(
            f"config.distillation.teacher={name!r} cannot teach: {why}; expected a net "
            "of the same classes and channels, for images of this size"
        )
    console.say(f"teacher: {net.variant} from {net.source}, sha256 {net.sha256[:16]}")
    return net
