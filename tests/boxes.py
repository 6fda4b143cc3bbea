"""A second objective: where the ink of an image is, four numbers, Euclidean loss.

As a recipe, `--config=tests/boxes.py`, it trains a small net on the digits.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from vgg_flax import config
from vgg_flax.metrics import Metric
from vgg_flax.training.objectives import Objective


def boxes(images: jax.Array) -> jax.Array:
    """`[B, H, W, C]`, uint8 -> `[B, 4]`: left, top, right, bottom, in image sides."""
    ink = images.max(axis=3) > 127
    return jnp.stack(
        [f(ink.any(axis=axis)) for f in (_first, _last) for axis in (1, 2)], axis=1
    )


def _first(ink: jax.Array) -> jax.Array:
    return jnp.argmax(ink, axis=1) / ink.shape[1]


def _last(ink: jax.Array) -> jax.Array:
    return 1 - _first(ink[:, ::-1])


def euclidean(
    outputs: jax.Array, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Half the squared distance of the four numbers; `side` is their mean error."""
    mask = batch["mask"]
    wrong = jnp.where(mask[:, None], outputs - boxes(batch["image"]), 0)
    return {
        "loss": jnp.square(wrong).sum() / 2,
        "side": jnp.abs(wrong).mean(axis=1).sum(),
        "close": (mask & (jnp.abs(wrong) < 0.1).all(axis=1)).sum(dtype=jnp.int32),
        "count": mask.sum(dtype=jnp.int32),
    }


BOXES = Objective(
    "boxes",
    euclidean,
    (
        Metric("loss", title="squared distance / 2"),
        Metric("side", ".3f", title="mean error (sides)", decides=True),
        Metric("close", ".1%", is_share=True, larger_is_better=True),
    ),
)


def get_objective() -> Objective:
    """Beside `get_config`, as every recipe with an objective of its own has it."""
    return BOXES


def get_config() -> config.Config:
    """A net of four outputs, on one to four devices."""
    return config.Config(
        model=config.ModelConfig(
            variant="vgg11_bn",
            num_classes=4,
            in_channels=1,
            width_multiplier=1 / 16,
            head="gap",
        ),
        data=config.DataConfig(
            name="digits",
            train_split="train[:50%]",
            validation_split="train[90%:]",
            test_split="test",
            batch_size=64,
            eval_batch_size=64,
            train_view="pad_crop",
            train_scale=(32, 32),
            crop_size=32,
            test_scale=32,
            flip=False,
            mean=(0.305,),
            std=(0.376,),
        ),
        optimizer=config.OptimizerConfig(learning_rate=0.01, schedule="plateau"),
        objective="boxes",
        num_epochs=2.0,
        eval_every_epochs=0.5,
        log_every_steps=5,
    )
