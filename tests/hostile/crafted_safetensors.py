"""safetensors files that ask for much, and metadata of ours."""

import json
import struct
from collections.abc import Callable
from typing import Any

from tests.conftest import random_net


def safetensors(header: str | bytes, content: bytes = b"") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + content


def _entry(shape: list[int] | str, start: int, end: int, dtype: str = "F32") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


def _many_entries(count: int, size: int) -> bytes:
    entries = (
        f'"{i}":' + _entry([size // 4], i * size, i * size + size) for i in range(count)
    )
    return safetensors("{" + ",".join(entries) + "}", bytes(size * count))


def _ours(model: dict[str, Any] | None = None, **changes: object) -> bytes:
    """With a card of our own in the metadata."""
    values = random_net("vgg11").card.to_json() | {"bgr": False} | changes
    values["model"] |= model or {}
    metadata = {"vgg_flax": json.dumps(values)}
    return safetensors(
        '{"__metadata__":'
        + json.dumps(metadata)
        + ',"features.0.weight":'
        + _entry([4, 3, 3, 3], 0, 432)
        + "}",
        bytes(432),
    )


SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "very many empty tensors": lambda: _many_entries(14_000, 0),
    "as many tensors as are read": lambda: _many_entries(7000, 60),
    "lists in lists": lambda: safetensors("{" + '"a":' + "[" * 900_000),
    "metadata in metadata": lambda: safetensors('{"__metadata__":' * 50_000),
    "much metadata": lambda: safetensors(
        '{"__metadata__":{' + ",".join(f'"{i}":"x"' for i in range(70_000)) + "}}"
    ),
    "a long shape of nothing": lambda: safetensors(
        '{"a":' + _entry("[0" + f",{2**63}" * 40_000 + "]", 0, 0) + "}"
    ),
    "a long shape of ones": lambda: safetensors(
        '{"a":' + _entry("[1" + ",1" * 400_000 + "]", 0, 4) + "}", bytes(4)
    ),
    "a huge shape of nothing": lambda: safetensors(
        '{"a":' + _entry([2**62, 0, 2**62], 0, 0) + "}"
    ),
    "a name of 900,000 letters": lambda: safetensors(
        '{"features.0.' + "n" * 900_000 + '":' + _entry([1], 0, 4) + "}", bytes(4)
    ),
    "long names": lambda: safetensors(
        "{"
        + ",".join(
            f'"{"features.0." * 800}{i}":' + _entry([1], 4 * i, 4 * i + 4)
            for i in range(90)
        )
        + "}",
        bytes(360),
    ),
    "names with controls": lambda: safetensors(
        "{"
        + ",".join(
            json.dumps("features.\x1b[2J\n\u202e" + str(i))
            + ":"
            + _entry([1], 4 * i, 4 * i + 4)
            for i in range(90)
        )
        + "}",
        bytes(360),
    ),
    "one name often": lambda: safetensors(
        "{" + ",".join('"a":' + _entry([0], 0, 0) for i in range(15_000)) + "}"
    ),
    "a number of 4,300 digits": lambda: safetensors(
        '{"a":' + _entry("[" + "9" * 4301 + "]", 0, 0) + "}"
    ),
    "a header of spaces": lambda: safetensors("{" + " " * 900_000 + "}"),
    "a header that ends the process": lambda: struct.pack("<Q", 2**32 - 1) + b"{}",
    "our metadata with very many classes": lambda: _ours(class_names=[""] * 60_000),
    "our metadata with very many layers": lambda: _ours(
        model={"fc_widths": [1] * 100_000}
    ),
    "our metadata with widths without end": lambda: _ours(
        model={"fc_widths": [10**300], "width_multiplier": 1e308}
    ),
    "our metadata with no width": lambda: _ours(
        model={"fc_widths": [], "width_multiplier": float("nan")}
    ),
    "our metadata of a huge window": lambda: _ours(
        model={"fc_widths": [8, 8], "fc6_window": 10**9}
    ),
}
