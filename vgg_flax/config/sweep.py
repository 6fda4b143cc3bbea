"""A sweep: values of fields, the product of which is so many configs, each named.

Fields that change together, "name,learning_rate", are one factor of it.
"""

import ast
import dataclasses
import hashlib
import itertools
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from vgg_flax.config import recipe, serialization
from vgg_flax.config.checks import check
from vgg_flax.config.settings import Config, fields
from vgg_flax.errors import ConfigError

# Characters: of a value in a folder's name, and of the whole, where file systems end at
# 255 bytes. What is longer is cut and ends with a part of its hash.
_VALUE, _NAME, _HASH = 40, 200, 8


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      folder: the name of its folder: "learning_rate=0.02,seed=1".
      values: of the swept fields, by dotted name, in the order they were given.
      config: the run's, checked.
    """

    folder: str
    values: Mapping[str, Any]
    config: Config


def points(sweeps: Sequence[str], config: Config) -> list[Point]:
    """The runs of `--sweep` flags, the last field changing fastest, all checked.

    Args:
      sweeps: each "NAME=VALUES", VALUES a Python list, or "NAME,NAME=ROWS", a list of
        tuples with a value for each of the names.
      config: what all of them have besides.

    Raises:
      ConfigError: no such field, one that is given twice, no list, one that is empty
        or repeats itself or has rows of another length, or values with which a config
        is none.

    Returns:
      None of them without flags.
    """
    if not sweeps:
        return []
    axes: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    given: list[str] = []
    for text in sweeps:
        names, rows = _parse(text)
        for name in names:
            if name in given:
                raise ConfigError(
                    f"--sweep {name} is given twice; give all its values in one list"
                )
            given.append(name)
        axes[names] = rows
    found: list[Point] = []
    for rows in itertools.product(*axes.values()):
        chosen = dict(zip(given, itertools.chain(*rows), strict=True))
        told = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
        try:
            changed = check(_with_values(config, chosen))
        except ConfigError as error:
            raise ConfigError(f"--sweep, the run of {told}: {error}") from error
        flat = serialization.flatten(changed)  # 1 of a list is 1.0 of the field
        chosen = {name: flat[name] for name in given}
        found.append(Point(_folder(chosen), chosen, changed))
    for names, rows in axes.items():
        different = {repr([point.values[name] for name in names]) for point in found}
        if len(different) < len(rows):
            values = rows if len(names) > 1 else [value for (value,) in rows]
            raise ConfigError(
                f"--sweep {','.join(names)}={values} has a value twice, or a row; "
                "leave it out"
            )
    return found


def check_index(index: int | None, count: int) -> None:
    """Raises ConfigError where `--sweep_index` is the number of none of the runs."""
    if index is None:
        return
    if not count:
        raise ConfigError(
            f"--sweep_index={index} says which run of a --sweep; give one"
        )
    if not 0 <= index < count:
        raise ConfigError(
            f"--sweep_index={index}: the sweep has {count} runs; expected 0 to "
            f"{count - 1}"
        )


def _parse(text: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The names before the "=", and a value of each in each row."""
    name, separator, literal = text.partition("=")
    names = tuple(part.strip() for part in name.split(","))
    name = ",".join(names)
    if not separator:
        raise ConfigError(
            f"--sweep {text}: expected NAME=VALUES, such as "
            "--sweep optimizer.learning_rate='[0.01, 0.02]'"
        )
    for one in names:
        recipe.check_name("--sweep ", one)
    try:
        values = ast.literal_eval(literal.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise ConfigError(
            f"--sweep {name}={literal}: this is no Python list; expected such as "
            "'[0.01, 0.02]', with words in quotes: \"['vgg11', 'vgg13']\""
        ) from error
    if not isinstance(values, list):
        raise ConfigError(
            f"--sweep {name}={literal}: expected a list, such as '[{literal}]'"
        )
    if not values:
        raise ConfigError(
            f"--sweep {name}=[] has no values; give some, or leave it out"
        )
    if len(names) == 1:
        return names, [(value,) for value in values]
    for row in values:
        if not isinstance(row, (tuple, list)) or len(row) != len(names):
            raise ConfigError(
                f"--sweep {name}: {row!r} is no value for each of {len(names)} fields; "
                f"expected tuples of {len(names)}, such as "
                "optimizer.name,optimizer.learning_rate="
                "\"[('sgd', 0.01), ('adamw', 1e-3)]\""
            )
    return names, [tuple(row) for row in values]


def _with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with fields of these dotted names."""
    nested = dataclasses.asdict(config)
    for name, value in values.items():
        *sections, last = name.split(".")
        target = nested
        for section in sections:
            target = target[section]
        target[last] = value
    return serialization.from_dict(nested)


def _folder(values: Mapping[str, Any]) -> str:
    parts = (f"{short_name(name)}={_in_name(v)}" for name, v in values.items())
    return _cut(",".join(parts), _NAME)


def short_name(name: str) -> str:
    """The last part of a field's name; all of it, where another field ends so."""
    last = name.rpartition(".")[2]
    lasts = [field.name.rpartition(".")[2] for field in fields()]
    return last if lasts.count(last) == 1 else name


def _in_name(value: Any) -> str:
    """A value in letters that no shell or file system takes for anything else.

    Two values of one field never give the same; those in a tuple have a + between.
    """
    if isinstance(value, tuple) and not any(isinstance(v, tuple) for v in value):
        text = "+".join(_quoted(str(element)) for element in value)
    else:
        text = _quoted(str(value))
    return _cut(text or "%", _VALUE)


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH]
    return f"{text[: limit - _HASH - 1]}~{digest}"
