"""Types, choices and ranges of a config, checked once, at the border."""

import dataclasses

from vgg_flax.config import serialization
from vgg_flax.config.settings import Config, DataConfig, ModelConfig
from vgg_flax.errors import ConfigError

CHOICES = {
    "model.head": ("fc", "gap"),
    "model.initializer": ("paper", "glorot", "he"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.pooling": ("max", "average"),
    "data.train_view": ("paper", "resized_crop", "pad_crop"),
    "data.train_resize": ("pillow", "cv2"),
    "data.on_bad_image": ("stop", "skip"),
    "fc_exchange": ("auto", "neighbours", "scatter"),
    "optimizer.schedule": ("constant", "step", "cosine", "plateau"),
}


def check(config: Config) -> Config:
    """Returns `config` with every type, choice and range checked.

    Raises:
      ConfigError: naming the field, its value, what is expected and a remedy.
    """
    config = serialization.from_dict(dataclasses.asdict(config))
    flat = serialization.flatten(config)
    for name, allowed in CHOICES.items():
        if flat[name] not in allowed:
            raise ConfigError(
                f"config.{name}={flat[name]!r}; expected one of {allowed}"
            )
    for name, low, high in _RANGES:
        values = flat[name] if isinstance(flat[name], tuple) else (flat[name],)
        for value in values:
            if value is not None and not low <= value <= high:  # NaN fails too
                raise ConfigError(
                    f"config.{name}={flat[name]}; expected "
                    + (f"at least {low}" if high == _INF else f"{low} to {high}")
                )
    _check_data(config.data, config.model)
    if config.optimizer.schedule == "plateau" and not config.data.validation_split:
        raise ConfigError(
            "config.optimizer.schedule='plateau' watches the validation split, and "
            "config.data.validation_split is empty; give one, such as 'train[90%:]'"
        )
    return config


def _check_data(data: DataConfig, model: ModelConfig) -> None:
    for name, value in (("mean", data.mean), ("std", data.std)):
        if len(value) != model.in_channels:
            raise ConfigError(
                f"config.data.{name}={value} has {len(value)} values for "
                f"config.model.in_channels={model.in_channels}; give one a channel"
            )
    for name, pair in (
        ("train_scale", data.train_scale),
        ("crop_area", data.crop_area),
    ):
        if pair[0] > pair[1]:
            raise ConfigError(f"config.data.{name}={pair}; expected (low, high)")
    smallest = data.train_scale[0] + 2 * data.padding * (data.train_view == "pad_crop")
    if data.train_view != "resized_crop" and smallest < data.crop_size:
        raise ConfigError(
            f"config.data.train_scale={data.train_scale} is smaller than "
            f"config.data.crop_size={data.crop_size}; raise it to {data.crop_size}"
        )
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
    square = [len(row) for row in data.color_eigenvectors]
    if len(data.color_eigenvalues) != 3 or square != [3, 3, 3]:
        raise ConfigError("config.data: expected 3 color_eigenvalues, 3x3 eigenvectors")


def check_batch(name: str, batch_size: int, multiple: int, of_what: str) -> None:
    """Raises ConfigError unless `batch_size` is a positive multiple of `multiple`."""
    if batch_size % multiple:
        below, above = batch_size - batch_size % multiple, batch_size // multiple + 1
        sizes = " or ".join(str(n) for n in (below, above * multiple) if n)
        raise ConfigError(
            f"config.{name}={batch_size} does not divide over {of_what}; try {sizes}"
        )


_INF = float("inf")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("model.num_classes", 1, _INF),
    ("model.in_channels", 1, 3),
    ("model.fc_widths", 1, _INF),
    ("model.fc6_window", 1, _INF),
    ("model.dropout_rate", 0, 0.99),
    ("data.batch_size", 1, _INF),
    ("data.eval_batch_size", 1, _INF),
    ("data.train_scale", 1, _INF),
    ("data.crop_size", 1, _INF),
    ("data.crop_area", 1e-4, 1),
    ("data.padding", 0, _INF),
    ("data.color_shift", 0, _INF),
    ("step_timeout_seconds", 1, _INF),
    ("data.std", 1e-6, _INF),
    ("data.num_threads", 1, _INF),
    ("data.prefetch", 1, _INF),
    ("optimizer.learning_rate", 0, _INF),
    ("optimizer.momentum", 0, 1),
    ("optimizer.weight_decay", 0, _INF),
    ("optimizer.warmup_epochs", 0, _INF),
    ("optimizer.decay_factor", 0, 1),
    ("optimizer.plateau_patience", 1, _INF),
    ("optimizer.plateau_max_decays", 0, _INF),
    ("optimizer.accumulation_steps", 1, _INF),
    ("profile.start_step", 1, _INF),
    ("profile.num_steps", 0, _INF),
    ("seed", 0, 2**32 - 1),
    ("num_epochs", 1e-9, _INF),
    ("num_steps", 1, _INF),
    ("eval_every_epochs", 1e-9, _INF),
    ("log_every_steps", 1, _INF),
    ("checkpoint_every_steps", 1, _INF),
    ("keep_checkpoints", 1, _INF),
)
