"""What a step says of itself, in its `meta/metadata`, under one sha256.

The JSON object `{"sha256": ..., "sealed": {"step", "score", "crc32s", "meta"}}`.
Versions before the seal wrote what is now `meta` alone, with the `crc32s` in it, as
"leaves": no part of a seal has that key, so that none passes for a step of theirs.
"""

import dataclasses
import hashlib
import json
from typing import Any

from etils import epath

from vgg_flax import console
from vgg_flax.runs.leaves import CheckpointError, Leaves

# What parsing spoiled JSON, or finding other things in it, raises.
_SPOILED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Statement:
    """What a step says of itself.

    Attributes:
      meta: what was given to `make`.
      score: a name and what it is on the validation split; None if not validated.
      sealed: whether a seal was checked; False: written before there was one.
    """

    meta: dict[str, Any]
    score: tuple[str, float] | None
    sealed: bool


def make(
    step: int, meta: dict[str, Any], score: tuple[str, float] | None
) -> dict[str, Any]:
    """The JSON object that says all of a step: `meta` with its "leaves", the score."""
    rest = {key: value for key, value in meta.items() if key != "leaves"}
    sealed = {"step": step, "score": score, "crc32s": meta["leaves"], "meta": rest}
    return {"sha256": _digest(sealed), "sealed": sealed}


def read(folder: epath.Path) -> Statement:
    """What the step in `folder`, which has its number as a name, says of itself.

    Raises:
      CheckpointError: that is missing, or is not what was saved as that number.
    """
    try:
        document = json.loads((folder / "meta" / "metadata").read_text())
        if "leaves" in document:
            return Statement(document, _earlier_score(folder), sealed=False)
        sealed, sha256 = document["sealed"], document["sha256"]
        if _digest(sealed) != sha256:
            raise ValueError("sha256 of another content")
        step, score = sealed["step"], sealed["score"]
        meta = {**sealed["meta"], "leaves": sealed["crc32s"]}
    except _SPOILED as error:
        raise unreadable(folder, error) from error
    if str(step) != folder.name:
        raise of_another_step(folder, step)
    return Statement(meta, score and tuple(score), sealed=True)


def of_another_step(folder: epath.Path, step: Any) -> CheckpointError:
    """The error of a step whose folder was given another's number."""
    return CheckpointError(
        f"checkpoint {folder} is damaged: it holds what was saved as step {step}; use "
        "another step, or copy it anew"
    )


def unreadable(folder: epath.Path, error: Exception) -> CheckpointError:
    """The error of a step in which something raised another."""
    first_line = "".join(str(error).splitlines()[:1])
    return CheckpointError(
        f"checkpoint {folder} cannot be read: {type(error).__name__}: "
        f"{first_line[:200]}"
    )


def _earlier_score(folder: epath.Path) -> tuple[str, float] | None:
    """Orbax wrote it to a file of its own, where there was one."""
    path = folder / "metrics" / "metrics"
    if not path.exists():
        return None
    ((name, value),) = json.loads(path.read_text()).items()
    return name, float(value)


def _digest(sealed: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def check_number(folder: epath.Path, leaves: Leaves) -> None:
    """Tells that there is no seal; sees that a state counted as many updates itself."""
    console.say(
        f"{folder} was saved by a version that sealed no steps: its arrays are "
        "checked, and not what it says of itself"
    )
    if str(leaves.get("step", folder.name)) != folder.name:
        raise of_another_step(folder, leaves["step"])
