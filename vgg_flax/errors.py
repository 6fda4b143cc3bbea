"""What a person at the keyboard can mend, and how a run ends early."""

import reprlib

from vgg_flax import spelling

_LINE = 4000  # characters of a message; what it ends with says what to do


class VGGFlaxError(Exception):
    """Something the person at the keyboard can mend; the message says how."""


def printable(text: str, limit: int = _LINE) -> str:
    """One line of `limit` characters at most, without what moves a terminal's cursor.

    What is left out of a longer text is its middle.
    """

    def cut(text: str) -> str:
        if len(text) <= limit:
            return text
        return f"{text[: limit // 2]} [...] {text[-(limit // 4) :]}"

    return cut(spelling.line(cut(text)))


def shown(value: object) -> str:
    """A value of a stranger's file for a message, in bounded time and space."""
    return printable(_SHORT.repr(value), 200)


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        del level
        return str(x) if x.bit_length() <= 256 else f"<{x.bit_length()} bits>"


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 100, 100


class ConfigError(VGGFlaxError):
    """A setting that is unknown, of the wrong type, or out of range."""


class Interrupted(VGGFlaxError):
    """SIGINT or SIGTERM came, and what was done is saved.

    Attributes:
      exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
