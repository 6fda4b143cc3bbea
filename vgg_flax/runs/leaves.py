"""A state's leaves by path, each with its shape, dtype and crc32; a step of them."""

import dataclasses
import hashlib
import json
import zlib
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import serialization, traverse_util

from vgg_flax.errors import VGGFlaxError

MODEL_KEYS = ("params", "batch_stats")  # of a state, what a net is
AVERAGE = "ema/"  # before the paths of their average

Leaves = dict[str, np.ndarray]  # by path: "params/conv1_1/kernel"


class CheckpointError(VGGFlaxError):
    """A checkpoint that is missing, damaged, or of something else."""


class DamagedStep(CheckpointError):
    """A step that is not what was saved.

    Attributes:
      step: its number.
      is_going: whether something is missing because, it may be, the run that saved it
        is just removing it.
    """

    def __init__(self, step: int, reason: CheckpointError, is_going: bool):
        super().__init__(str(reason))
        self.step, self.is_going = step, is_going


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a step's folder held, its crcs checked.

    Attributes:
      step: updates made.
      leaves: of the items that were read, by path.
      meta: what `Checkpoints.save` was given as such.
    """

    step: int
    leaves: Leaves
    meta: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the leaves' names, shapes, dtypes and crcs: equal for equal weights."""
        described = {
            path: leaf
            for path, leaf in self.meta["leaves"].items()
            if path.split("/")[0] in MODEL_KEYS
        }
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def averaged(self) -> "Checkpoint":
        """The same with the average of what was trained in place of its last values.

        Raises:
          CheckpointError: the run keeps none.
        """
        described: dict[str, Any] = self.meta["leaves"]
        of_average = [path for path in described if path.startswith(AVERAGE)]
        found = {path.removeprefix(AVERAGE): path for path in of_average}
        if not found:
            raise CheckpointError(
                f"step {self.step} has no average of the params: its run was trained "
                "with config.averaging.decay=0; leave --ema out"
            )
        theirs = {name: described[path] for name, path in found.items()}
        leaves = {name: self.leaves[path] for name, path in found.items()}
        meta = {**self.meta, "leaves": {**described, **theirs}}
        return Checkpoint(self.step, {**self.leaves, **leaves}, meta)

    @property
    def variables(self) -> dict[str, Any]:
        """`{"params": ..., "batch_stats": ...}`, as `model.apply` takes them."""
        chosen = {k: v for k, v in self.leaves.items() if k.split("/")[0] in MODEL_KEYS}
        return traverse_util.unflatten_dict(chosen, sep="/")


def to_leaves(state: Any) -> Leaves:
    """A pytree's leaves as host arrays of their own, by path."""
    nested = serialization.to_state_dict(state)
    flat = traverse_util.flatten_dict(nested, sep="/")
    # Copies: on CPU a view would alias buffers that the next step is given.
    return {path: np.array(jax.device_get(leaf)) for path, leaf in flat.items()}


def shapes_by_path(state: Any) -> dict[str, Any]:
    """The leaves of a pytree of shapes, by the same paths."""
    nested = serialization.to_state_dict(state)
    return traverse_util.flatten_dict(nested, sep="/")


def from_leaves(target: Any, leaves: Leaves) -> Any:
    """`target`'s pytree with the values of `leaves`.

    Raises:
      CheckpointError: listing every missing, unexpected or misshapen leaf.
    """
    nested = serialization.to_state_dict(target)
    expected: dict[str, Any] = traverse_util.flatten_dict(
        nested, sep="/", keep_empty_nodes=True
    )
    full, problems = {}, [f"{p}: unexpected" for p in leaves if p not in expected]
    for path, leaf in expected.items():
        if leaf is traverse_util.empty_node:
            full[path] = leaf
        elif path not in leaves:
            problems.append(f"{path}: missing")
        elif leaves[path].shape != leaf.shape or leaves[path].dtype != leaf.dtype:
            actual = f"{leaves[path].shape} {leaves[path].dtype}"
            problems.append(f"{path}: {actual}, expected {leaf.shape} {leaf.dtype}")
        else:
            full[path] = leaves[path]
    if problems:
        raise CheckpointError(
            "the checkpoint is of another net: " + "; ".join(problems)
        )
    nested = traverse_util.unflatten_dict(full, sep="/")
    return serialization.from_state_dict(target, nested)


def describe(leaves: Leaves) -> dict[str, dict[str, Any]]:
    """What a checkpoint says of each leaf: `shape`, `dtype`, `crc32`."""
    return {
        path: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "crc32": zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data),
        }
        for path, leaf in leaves.items()
    }


def check(folder: epath.Path, leaves: Leaves, described: dict[str, Any]) -> None:
    """Raises CheckpointError for leaves of a step in `folder` that are others."""
    actual = describe(leaves)
    wrong = [path for path in actual if actual[path] != described[path]]
    if wrong:
        listed = ", ".join(wrong[:3]) + " and others" * (len(wrong) > 3)
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {listed} differ from what was saved "
            "(crc32); use another step, or copy it anew"
        )
