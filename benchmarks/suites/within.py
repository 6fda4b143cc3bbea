"""`loop`, `evaluate` and `dense`: this package over what it could do at best."""

from typing import Any

from benchmarks.pairs import Row
from benchmarks.workers import Contender

_WEIGHTS = {"weights": {"variant": "vgg16"}}
_BATCH = 8


def _pair(module: str, key: str, whats: tuple[str, str], **spec: Any) -> Any:
    """Contenders of one module that differ in `key`."""
    return [Contender(what, "ours", module, spec | {key: what}) for what in whats]


def loop() -> list[Row]:
    """The trainer's loop over its compiled step."""
    rows = []
    for recipe in ("default recipe", "vgg11 at 64 pixels"):
        ours, bare = _pair("loop", "what", ("loop", "bare"), recipe=recipe)
        row = Row("loop", recipe, "bare step", ours, (bare,), 1, "steps/s", longer=4)
        rows.append(row)
    return rows


def evaluate() -> list[Row]:
    """The command over the forward pass."""
    photos = {"width": 500, "height": 375, "count": 256}
    spec = {"photos": photos, "batch": _BATCH, **_WEIGHTS}
    ours, bare = _pair("evaluating", "what", ("command", "forward"), **spec)
    return [
        Row(
            "evaluate",
            "vgg16, native photos",
            "bare forward pass",
            ours,
            (bare,),
            amount=_BATCH,
            longer=6,
        )
    ]


def dense() -> list[Row]:
    """Dense evaluation over the crops that it replaces."""
    ours, crops = _pair("protocols", "protocol", ("dense", "multicrop"), **_WEIGHTS)
    name = "vgg16, three scales, flips"
    # Three pairs: 150 crops of one image take a minute.
    return [Row("dense", name, "150 crops", ours, (crops,), amount=1, pairs=3)]
