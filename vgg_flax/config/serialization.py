"""A config as JSON and as dotted names, and back; what a resumed run may change."""

import dataclasses
import difflib
import json
from typing import Any

import dacite

from vgg_flax.config.settings import Config
from vgg_flax.errors import ConfigError

# Fields that change how a run is watched or where it runs, not what it computes:
# a resumed run may change them freely.
FREE_ON_RESUME = (
    "data.data_dir",
    "data.eval_batch_size",
    "data.cache",
    "data.num_threads",
    "data.prefetch",
    "data.on_bad_image",
    "remat",
    "shard_fc",
    "fc_exchange",
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "step_timeout_seconds",
    "profile.start_step",
    "profile.num_steps",
    "init_from",
    "init_layers",
    "resume_with_changes",
)


def flatten(config: Config) -> dict[str, Any]:
    """`config` as `{"model.variant": "vgg16", ...}`."""
    flat = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def to_json(config: Config) -> str:
    """`config` as the text of `WORKDIR/config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict`, from JSON too; every type is checked.

    Raises:
      ConfigError: an unknown field or a value of the wrong type.
    """
    rules = dacite.Config(strict=True, type_hooks={float: _to_float})
    try:
        return dacite.from_dict(Config, _to_tuples(values), rules)
    except dacite.DaciteError as error:
        raise ConfigError(f"config: {error}") from error


def differences(saved: Config, current: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which two runs compute something else: `{name: (saved, current)}`."""
    old, new = flatten(saved), flatten(current)
    return {
        name: (old[name], new[name])
        for name in new
        if old[name] != new[name] and name not in FREE_ON_RESUME
    }


def unknown_key(key: str) -> ConfigError:
    """The error for a `--config.KEY` that no field answers to."""
    known = list(flatten(Config()))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    tail = [name for name in known if name.rsplit(".")[-1] == key.rsplit(".")[-1]]
    return ConfigError(
        f"--config.{key}: no such setting; did you mean --config.{(tail or close)[0]}?"
    )


def _to_float(value: Any) -> Any:
    """JSON and the command line write 90 for 90.0."""
    return float(value) if type(value) is int else value


def _to_tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {key: _to_tuples(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_to_tuples(inner) for inner in value)
    return value
