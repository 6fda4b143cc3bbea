"""How names that others gave are written: on a terminal, in a file, and back.

A file's name on Linux is bytes, which Python has as text: one that is no UTF-8 has lone
surrogates, which neither a terminal nor a file in UTF-8 takes. A backslash begins an
escape here, so that one of the name itself is doubled, and each name is written in a
way of its own. Bash reads both writings as `$'...'`; `restored` does too.
"""

import re
import unicodedata
from typing import Any

_PLAIN = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPE = re.compile(
    r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))", re.ASCII
)
_BYTES = range(0xDC80, 0xDD00)  # what Python has for bytes that are no UTF-8


def shown(name: str) -> str:
    r"""A name on one line, with nothing in it that moves a cursor: `caf\xe9`, `a\nb`.

    `\x80` to `\xff` are bytes that are no UTF-8; characters are `\u0085`, `\U000e0001`.
    """
    return "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in name)


def spelt(name: str) -> str:
    r"""As `shown`, in ASCII, where all that differs is seen: `\\u00e9`, `e\\u0301`."""
    return "".join(c if c.isascii() else _escaped(c) for c in shown(name))


def line(text: str) -> str:
    """A message on one line that may hold names; its backslashes stay as they are."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def written(value: Any) -> Any:
    r"""A name for a file in UTF-8: itself, but for `\\` and bytes as `shown` has them.

    Of dicts, lists and tuples all strings are so written, keys too.
    """
    if isinstance(value, str):
        special = re.compile("[\\\\\ud800-\udfff]")
        return special.sub(lambda match: _escaped(match[0]), value)
    if isinstance(value, dict):
        return {written(key): written(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [written(one) for one in value]
    return value


def restored(text: str) -> str:
    """The name that `shown` or `written` has made `text` of; for `open`, as it is."""

    def original(match: re.Match[str]) -> str:
        plain, byte, short, long = match.groups()
        if plain:
            return next(c for c, text in _PLAIN.items() if text[1] == plain)
        code = int(byte or short or long, 16)
        return chr(code + 0xDC00 if byte and code >= 0x80 else code)

    return _ESCAPE.sub(original, text)


def digestible(text: str) -> bytes:
    """Bytes for a hash; those of UTF-8, where the text has some."""
    return text.encode("utf-8", "surrogatepass")


def same(name: str) -> str:
    """What is equal of names that look the same: é as one character, or as two."""
    return unicodedata.normalize("NFC", name)


def _escaped(character: str) -> str:
    code = ord(character)
    if character in _PLAIN:
        return _PLAIN[character]
    if code < 0x80:
        return f"\\x{code:02x}"
    if code in _BYTES:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
