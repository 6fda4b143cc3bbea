"""A field of a config: its default, what it means, and which values it takes."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from vgg_flax.errors import ConfigError

T = TypeVar("T")


def setting(
    default: T,
    meaning: str,
    *,
    choices: Mapping[str, str] | None = None,
    low: float | None = None,
    high: float = math.inf,
    free_on_resume: bool = False,
) -> T:
    """The one line that declares a field in a config's dataclass.

    Args:
      default: where a recipe gives no value.
      meaning: with its unit; a phrase without a full stop.
      choices: the values it takes, each with what it means; None: any.
      low: the smallest value, of each element of a tuple; None: there is no range.
      high: the largest value, with `low`.
      free_on_resume: whether it changes how a run is watched or where it runs, not
        what it computes, so that a resumed run may have another value.

    Returns:
      A `dataclasses.field`. It is typed as the default is, so that a type checker
      compares that with the field's annotation.
    """
    metadata = {
        "meaning": meaning,
        "choices": choices or {},
        "low": low,
        "high": high,
        "free_on_resume": free_on_resume,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Field:
    """A declared field.

    Attributes:
      name: dotted, such as "model.variant".
      type: as it is written: "tuple[int, int]".
      default: as in `setting`, like the next ones.
      meaning: without the choices'.
      choices: empty: there are none.
      low: None: there is no range.
      high: may be infinite.
      free_on_resume: whether a resumed run may change it.
    """

    name: str
    type: str
    default: Any
    meaning: str
    choices: Mapping[str, str]
    low: float | None
    high: float
    free_on_resume: bool

    @property
    def section(self) -> str:
        """ "model" of "model.variant"; of a field of the run itself, ""."""
        return self.name.rpartition(".")[0]

    @property
    def range(self) -> str:
        """The range in words; "" where there is none."""
        if self.low is None:
            return ""
        if self.high == math.inf:
            return f"at least {self.low}"
        return f"{self.low} to {self.high}"

    def check(self, value: Any) -> None:
        """Sees that `value`, of the field's type, is a choice and in the range.

        Raises:
          ConfigError: it is not.
        """
        if self.choices and value not in self.choices:
            raise ConfigError(
                f"config.{self.name}={value!r}; expected one of {tuple(self.choices)}"
            )
        for element in value if isinstance(value, tuple) else (value,):
            if self.low is None or element is None:
                continue
            if not self.low <= element <= self.high:  # NaN fails too
                raise ConfigError(f"config.{self.name}={value}; expected {self.range}")


def fields_of(section: type, prefix: str = "") -> Iterator[Field]:
    """The fields of a dataclass, and of those in it, as they are declared.

    Args:
      section: a dataclass whose fields are `setting`s or dataclasses.
      prefix: of the names: "model.".
    """
    for field in dataclasses.fields(section):
        name, kind = prefix + field.name, field.type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from fields_of(kind, f"{name}.")
        else:
            text = kind.__name__ if type(kind) is type else str(kind)
            yield Field(name, text, field.default, **field.metadata)
