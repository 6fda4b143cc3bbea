"""A config as JSON and as dotted names, and back; how two of them differ."""

import dataclasses
import json
import operator
from typing import Any

import dacite

from vgg_flax.config.settings import Config, fields
from vgg_flax.errors import ConfigError


def flatten(config: Config) -> dict[str, Any]:
    """`config` as `{"model.variant": "vgg16", ...}`."""
    return {f.name: operator.attrgetter(f.name)(config) for f in fields()}


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
    except dacite.WrongTypeError as error:
        path = error.field_path or ""
        value: Any = values
        for part in path.split("."):
            value = value[part]
        types = {field.name: field.type for field in fields()}
        expected = types.get(path, "a section")
        alone = _is_row(value) and not any(map(_is_row, value))
        if expected.startswith("tuple[tuple") and alone:
            expected += "; a single row ends with a comma: ((...),)"
        raise ConfigError(f"config.{path}={value!r}; expected {expected}") from error
    except dacite.DaciteError as error:
        raise ConfigError(f"config: {error}") from error


def differences(saved: Config, current: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which two runs compute something else: `{name: (saved, current)}`."""
    old, new = flatten(saved), flatten(current)
    return {
        field.name: (old[field.name], new[field.name])
        for field in fields()
        if old[field.name] != new[field.name] and not field.free_on_resume
    }


def _is_row(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _to_float(value: Any) -> Any:
    """JSON and the command line write 90 for 90.0."""
    return float(value) if type(value) is int else value


def _to_tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if value == (None,):  # ml_collections' reading of --config.data.mean=None
        return None
    if isinstance(value, dict):
        return {key: _to_tuples(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_to_tuples(inner) for inner in value)
    return value
