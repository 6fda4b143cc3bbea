"""Every field of a config as text: a page of the manual, and for `--help`."""

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

from absl import flags

from vgg_flax.config.field import Field
from vgg_flax.config.settings import Config, fields

_PAGE = """\
# Every field of a config

A recipe gives a config by `get_config()`, and the command line changes any field of it:
`--config.model.variant=vgg16_bn`, `--config.data.flip=false`, and, as Python writes
tuples, `--config.data.train_scale='(256, 512)'`. The defaults are those of a field that
the recipe does not name. `python train.py --help` lists the same fields.

A run directory holds all of them in `config.json`. A resumed run has the same values,
except in fields whose last column says "yes": these change how a run is watched or
where it runs, not what it computes. `--config.resume_with_changes=true` lets the others
change too.

This page is made from the declarations in `vgg_flax/config/settings.py`; a test fails
where it is not what this prints:

    python -m vgg_flax.config > docs/config.md
"""
_COLUMNS = ("field", "type", "default", "values", "meaning", "changes on resume")


def page() -> str:
    """The text of `docs/config.md`."""
    parts = [_PAGE]
    for title, section in _sections():
        rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, section)]
        table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
        parts.append(f"## {title}\n\n{table}")
    return "\n".join(parts)


def help_text() -> str:
    """Every field as absl shows a flag, wrapped to the terminal's width."""
    lines = ["config fields (a default holds where the recipe names no value):"]
    for title, section in _sections():
        lines += ["", flags.text_wrap(title, indent="  ")]
        for field in section:
            lines += _flag_lines(field)
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[tuple[str, list[Field]]]:
    """Each dataclass' docstring, with its fields."""
    config = Config()
    for name, section in itertools.groupby(fields(), lambda field: field.section):
        owner: Any = getattr(config, name) if name else config
        yield (inspect.getdoc(owner) or "").rstrip("."), list(section)


def _cells(field: Field) -> tuple[str, ...]:
    choices = "; ".join(f"`{name}`: {text}" for name, text in field.choices.items())
    return (
        f"`{field.name}`",
        f"`{field.type}`".replace("|", "\\|"),  # else it would end the cell
        f"`{field.default!r}`",
        choices or field.range,
        field.meaning,
        "yes" if field.free_on_resume else "no",
    )


def _flag_lines(field: Field) -> Iterator[str]:
    yield flags.text_wrap(
        f"--config.{field.name}: {field.meaning}", indent="    ", firstline_indent="  "
    )
    for name, text in field.choices.items():
        yield flags.text_wrap(
            f"{name}: {text}", indent=" " * 8, firstline_indent=" " * 6
        )
    notes = (field.type, field.range, f"default: {field.default!r}")
    yield flags.text_wrap(f"({', '.join(filter(None, notes))})", indent="    ")
