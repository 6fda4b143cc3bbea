"""A recipe and what the command line changes in it -> a config."""

import difflib
import re
from collections.abc import Sequence

from absl import flags
from etils import epath
from ml_collections import config_flags

from vgg_flax.config.aliases import ALIASES, ELSEWHERE
from vgg_flax.config.settings import Config, fields
from vgg_flax.errors import ConfigError


def define_flag(
    default: str,
    flag_values: flags.FlagValues = flags.FLAGS,
    arguments: list[str] | None = None,
) -> None:
    """Defines `--config=FILE` and the `--config.NAME=VALUE` of every field.

    Args:
      default: of `--config`.
      flag_values: where.
      arguments: the command line that will be parsed, the program's name first;
        None: that of this process.
    """
    config_flags.DEFINE_config_file(
        "config",
        default,
        "a recipe: a Python file with get_config()",
        flag_values=flag_values,
        sys_argv=arguments,
    )


def check_names(arguments: Sequence[str]) -> None:
    """Sees that the files and fields in `--config...` exist, before flags are parsed.

    And that no field is named without `--config`, by its own name or another's.

    Raises:
      ConfigError: naming the nearest field, or the file.
    """
    known = [field.name for field in fields()]
    for argument in arguments:
        if match := re.match(r"--?config\.([\w.-]+)", argument):
            check_name("--config.", match[1])
        match = re.match(r"--(?!config\b)([\w.-]+)", argument)
        if match and _is_meant_for_a_field(match[1], known):
            raise ConfigError(
                f"--{match[1]}: no such flag; {_instead(match[1], known)}"
            )
        match = re.match(r"--?config=(.*)", argument)
        if match and not epath.Path(match[1]).is_file():
            raise ConfigError(f"--config={match[1]}: there is no such file")


def check_name(prefix: str, name: str) -> None:
    """Raises ConfigError, naming the nearest one, where there is no field `name`.

    Args:
      prefix: what stands before it on the command line: "--config.".
      name: dotted.
    """
    known = [field.name for field in fields()]
    if name not in known:
        raise ConfigError(
            f"{prefix}{name}: no such setting; {_instead(name, known, prefix)}"
        )


def of_flags(flag_values: flags.FlagValues = flags.FLAGS) -> tuple[str, Config]:
    """The recipe's path and its config, once the flags are parsed.

    Raises:
      ConfigError: the file is no recipe.
    """
    path = config_flags.get_config_filename(flag_values["config"])
    settings = flag_values.config
    if not isinstance(settings, Config):
        raise ConfigError(
            f"--config={path} is not a recipe; expected a Python file whose "
            "get_config() returns a vgg_flax.config.Config"
        )
    return path, settings


def read(path: str, overrides: Sequence[str] = ()) -> Config:
    """The config of a recipe with `--config.NAME=VALUE` applied.

    Raises:
      ConfigError: no such file or field, or a value that does not fit.
    """
    arguments = [f"--config={path}", *overrides]
    check_names(arguments)
    command = ["recipe", *arguments]
    values = flags.FlagValues()
    define_flag(path, values, command)
    try:
        rest = values(command)[1:]
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if rest:
        raise ConfigError(f"{rest[0]}: expected --config.NAME=VALUE")
    return of_flags(values)[1]


def _is_meant_for_a_field(flag: str, known: Sequence[str]) -> bool:
    if flag in flags.FLAGS:
        return False
    last = flag.replace("-", "_").rpartition(".")[2]
    names = {field.rpartition(".")[2] for field in known}
    return last in names or last in ALIASES or last in ELSEWHERE


def _instead(name: str, known: Sequence[str], prefix: str = "--config.") -> str:
    """What does what is meant, for people."""
    name = name.replace("-", "_")
    elsewhere = ELSEWHERE.get(name.rpartition(".")[2])
    return elsewhere or f"did you mean {prefix}{_nearest(name, known)}?"


def _nearest(name: str, known: Sequence[str]) -> str:
    """The field of another section that is so called, or by others; or is spelt so."""
    last = name.rpartition(".")[2]
    for field in known:
        if field.rpartition(".")[2] == last:
            return field
    if last in ALIASES:
        return ALIASES[last]
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
