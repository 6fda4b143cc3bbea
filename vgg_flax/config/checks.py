"""Types, choices and ranges of a config, checked once, at the border."""

import dataclasses
import math

from vgg_flax.config import serialization
from vgg_flax.config.data_settings import (
    DataConfig,
    mean_and_std,
    training_stages,
)
from vgg_flax.config.regularization_settings import DistillationConfig
from vgg_flax.config.settings import Config, ModelConfig, fields
from vgg_flax.errors import ConfigError


def check(config: Config) -> Config:
    """Returns `config` with every type, choice and range checked.

    Raises:
      ConfigError: naming the field, its value, what is expected and a remedy.
    """
    config = serialization.from_dict(dataclasses.asdict(config))
    values = serialization.flatten(config)
    for field in fields():
        field.check(values[field.name])
    _check_channels(config)
    _check_data(config.data, config.model)
    _check_optimizer(config)
    if config.optimizer.schedule == "plateau" and not config.data.validation_split:
        raise ConfigError(
            "config.optimizer.schedule='plateau' watches the validation split, and "
            "config.data.validation_split is empty; give one, such as 'train[90%:]'"
        )
    _check_distillation(config.distillation)
    if config.init_ema and not config.init_from:
        raise ConfigError(
            "config.init_ema=True is of the run in config.init_from, which is empty; "
            "give one: --config.init_from=RUN"
        )
    watching = {
        "early_stopping_patience": config.early_stopping_patience > 0,
        "test_step": config.test_step == "best",
    }
    for name, is_on in watching.items():
        if is_on and not config.data.validation_split:
            raise ConfigError(
                f"config.{name}={getattr(config, name)!r} watches the validation "
                "split, and config.data.validation_split is empty; give one, such as "
                "'train[90%:]'"
            )
    if not config.data.validation_split and not config.data.test_split:
        raise ConfigError(
            "config.data.validation_split and config.data.test_split are empty: "
            "nothing would say what the net has learnt; give one of them"
        )
    return config


def _check_optimizer(config: Config) -> None:
    """Sees that the schedule is one for the optimiser, and its rise is given."""
    settings = config.optimizer
    if settings.schedule == "one_cycle" and not settings.warmup_epochs:
        raise ConfigError(
            "config.optimizer.schedule='one_cycle' rises for "
            "config.optimizer.warmup_epochs, which are 0; give them, such as 0.3 of "
            f"the run: {0.3 * config.num_epochs:g}"
        )
    if settings.name != "custom":
        return
    if settings.schedule not in ("constant", "plateau"):
        raise ConfigError(
            f"config.optimizer.schedule={settings.schedule!r} with "
            "config.optimizer.name='custom', which has its learning rate over time "
            "from get_optimizer(); expected 'constant', or 'plateau'"
        )
    if config.shard_fc:
        raise ConfigError(
            "config.shard_fc=True with config.optimizer.name='custom': each replica "
            "would give it its own rows of the FC kernels only, and what it does over "
            "a whole kernel, such as a norm, would be wrong; set shard_fc=False"
        )


def _check_distillation(settings: DistillationConfig) -> None:
    """Sees that there is a teacher where something is said of one."""
    if not settings.teacher and settings != DistillationConfig():
        raise ConfigError(
            f"config.distillation.teacher_ema={settings.teacher_ema}, weight="
            f"{settings.weight}, temperature={settings.temperature} are of a teacher, "
            "and there is none; give one: "
            "--config.distillation.teacher=WEIGHTS"
        )


def _check_channels(config: Config) -> None:
    """Sees that there is a mean and a std a channel; those of weights are to come."""
    channels, data = config.model.in_channels, config.data
    for name, value in zip(("mean", "std"), mean_and_std(data), strict=True):
        is_given = getattr(data, name) is not None
        if len(value) != channels and (is_given or not config.init_from):
            raise ConfigError(
                f"config.data.{name}={value}{'' if is_given else ' (of ImageNet)'} has "
                f"{len(value)} values for config.model.in_channels={channels}; give "
                "one a channel"
            )


def _check_data(data: DataConfig, model: ModelConfig) -> None:
    if data.crop_area[0] > data.crop_area[1]:
        raise ConfigError(
            f"config.data.crop_area={data.crop_area}; expected (low, high)"
        )
    _check_stages(data)
    if data.test_scale < data.crop_size:
        raise ConfigError(
            f"config.data.test_scale={data.test_scale} is smaller than "
            f"config.data.crop_size={data.crop_size}; raise it to {data.crop_size}"
        )
    if data.color_shift and model.in_channels != 3:
        raise ConfigError(
            f"config.data.color_shift={data.color_shift} needs RGB, and "
            f"config.model.in_channels={model.in_channels}; set color_shift=0"
        )
    *_, saturation, hue = data.color_jitter
    if hue > 0.5:
        raise ConfigError(
            f"config.data.color_jitter={data.color_jitter} has a hue of {hue}; "
            "expected at most 0.5, half of the circle"
        )
    if (saturation or hue) and model.in_channels != 3:
        raise ConfigError(
            f"config.data.color_jitter={data.color_jitter} has saturation or hue, for "
            f"RGB, and config.model.in_channels={model.in_channels}; set both to 0"
        )
    square = [len(row) for row in data.color_eigenvectors]
    if len(data.color_eigenvalues) != 3 or square != [3, 3, 3]:
        raise ConfigError("config.data: expected 3 color_eigenvalues, 3x3 eigenvectors")


def _check_stages(data: DataConfig) -> None:
    """Sees that the views of training can be made, from each epoch on."""
    for name in ("crop_size_by_epoch", "train_scale_by_epoch"):
        rows = getattr(data, name)
        epochs = [row[0] for row in rows]
        if epochs != sorted({e for e in epochs if 0 <= e < math.inf}):
            raise ConfigError(
                f"config.data.{name}={rows} begins at epochs {epochs}; expected each "
                "later than the one before, the first 0 or later"
            )
        if any(size < 1 for row in rows for size in row[1:]):
            raise ConfigError(
                f"config.data.{name}={rows} has a size below 1; expected pixels"
            )
    if data.train_scale_by_epoch and data.train_view == "resized_crop":
        raise ConfigError(
            f"config.data.train_scale_by_epoch={data.train_scale_by_epoch} is of the "
            "views 'paper' and 'pad_crop', and config.data.train_view='resized_crop' "
            "has no S; leave it out, or use one of them"
        )
    for where, (low, high) in [
        ("train_scale", data.train_scale),
        *(
            (f"train_scale_by_epoch, epoch {epoch:g}:", (low, high))
            for epoch, low, high in data.train_scale_by_epoch
        ),
    ]:
        if low > high:
            raise ConfigError(
                f"config.data.{where}={(low, high)}; expected (low, high)"
            )
    padding = 2 * data.padding * (data.train_view == "pad_crop")
    for epoch, stage in training_stages(data):
        low, side = stage.train_scale[0], stage.crop_size
        if data.train_view != "resized_crop" and low + padding < side:
            sizes = f"config.data.train_scale={stage.train_scale}"
            crop = f"config.data.crop_size={side}"
            if data.crop_size_by_epoch or data.train_scale_by_epoch:
                sizes = f"S of {stage.train_scale} from epoch {epoch:g} on"
                crop = f"that epoch's side of {side} (config.data.*_by_epoch)"
            raise ConfigError(
                f"{sizes} is smaller than {crop}; raise S to {side - padding}, or "
                "lower the side"
            )


def check_batch(name: str, batch_size: int, multiple: int, of_what: str) -> None:
    """Raises ConfigError unless `batch_size` is a positive multiple of `multiple`."""
    if batch_size % multiple:
        below, above = batch_size - batch_size % multiple, batch_size // multiple + 1
        sizes = " or ".join(str(n) for n in (below, above * multiple) if n)
        raise ConfigError(
            f"config.{name}={batch_size} does not divide over {of_what}; try {sizes}"
        )
