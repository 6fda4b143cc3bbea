"""A run's steps as folders that Orbax writes and reads: the only file that says orbax.

A step's folder holds these items: `model` (params, batch_stats), `ema`, their average,
if there is one, `training` (the rest of the state) and `meta`, the `seal` of all.
"""

import contextlib
import datetime
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vgg_flax.runs import leaves as leaves_lib
from vgg_flax.runs import seal
from vgg_flax.runs.leaves import Leaves

# Orbax warns of each save without metrics, which one between evaluations has not.
absl_logging.get_absl_logger().addFilter(
    lambda record: "Requested `tracked_metric`" not in record.getMessage()
)

ITEMS = ("model", "ema", "training")  # that hold the leaves

# Where steps that are to go are moved: a removal that is cut off in the middle would
# otherwise leave half a step, which reads as a damaged one.
REMOVED = ".removed"

# What Orbax, TensorStore and their parsers raise when the bytes of arrays are spoiled.
_SPOILED = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)


def number_of(name: str) -> int | None:
    """The step whose folder is named so; None: of none ("059", "copy of 59")."""
    return int(name) if re.fullmatch("0|[1-9][0-9]*", name) else None


class _Folder(ocp.path.step.Metadata):
    """A step's folder. Orbax would ask a file in it, which may be spoiled, its age."""

    @property
    def commit_timestamp(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(0, datetime.UTC)


class _Names(ocp.path.step.NameFormat):
    """Which folders are steps: those named by a number, whatever is in them."""

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[_Folder]:
        for path in epath.Path(base_path).iterdir():
            step = number_of(path.name)
            if step is not None and is_whole(path):
                yield _Folder(step, path)

    def find_step(self, base_path: epath.PathLike, step: int) -> _Folder:
        path = epath.Path(base_path) / self.build_name(step)
        if not is_whole(path):
            raise ValueError(f"{path} is no finished step")  # as Orbax expects
        return _Folder(step, path)


def is_whole(path: epath.Path) -> bool:
    """Whether what is at `path`, if anything, is no save under way.

    A file in a folder's place is none, and found to be damaged when it is read.
    """
    if path.is_dir():
        return ocp.utils.is_checkpoint_finalized(path)
    return path.exists()


def numbers(folder: epath.Path) -> list[int]:
    """The steps whose folders lie in `folder`, in whatever state, in order."""
    found = (number_of(path.name) for path in folder.iterdir())
    return sorted(number for number in found if number is not None)


def ignored(folder: epath.Path) -> list[str]:
    """The names of what lies among the steps, and is neither one nor Orbax's own."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if (number_of(path.name) is None or not path.exists())
        and not path.name.startswith(".")
        and ".orbax-checkpoint-tmp" not in path.name  # being written, or left by a kill
    )


class Manager(ocp.CheckpointManager):
    """Orbax's, asking the steps' seals for the scores and `Signals` when to stop."""

    def __init__(
        self,
        folder: epath.Path,
        keep: int,
        read_score: Callable[[int], tuple[str, float] | None],
        *,
        read_only: bool,
    ):
        """Opens the folder; see `checkpoint.Checkpoints`."""
        self._read_score = read_score
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=_value, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        super().__init__(
            folder,
            # Told here, they are not guessed from the first folder that is read.
            item_names=("meta", *ITEMS),
            options=ocp.CheckpointManagerOptions(
                best_fn=_value,
                best_mode="max",
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                prevent_write_metrics=True,
                # Where making them in the background fails, other threads wait five
                # minutes for them, and the process with these when it ends.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                step_name_format=_Names(),
                todelete_subdir=None if read_only else REMOVED,
                # A run that is saving has one, and would lose it to its readers.
                cleanup_tmp_directories=not read_only,
            ),
        )

    def reached_preemption(self, step: int) -> bool:
        """Never: Orbax leaves JAX's coordinator to `Signals`.

        Orbax asks it, at each save and from a thread of its own, whether to stop at
        this step, and JAX agrees on a stop by the number that was asked for last: one
        that the polls of `Signals`, which count evaluated batches too, may have passed
        long ago. The signal was lost then, and the run went on.
        """
        del step  # whoever saves because of a signal has heard of it already
        return False

    def metrics(self, step: int) -> dict[str, float] | None:
        """The score, whose file Orbax would read, and fail as a whole if it can't."""
        score = self._read_score(step)
        return None if score is None else dict([score])

    def save_sealed(
        self,
        step: int,
        leaves: Leaves,
        meta: dict[str, Any],
        score: tuple[str, float] | None,
    ) -> None:
        """Starts saving; OSError or ValueError where that fails."""
        items: dict[str, Any] = {
            item: ocp.args.StandardSave(traverse_util.unflatten_dict(part, sep="/"))
            for item in ITEMS
            if (part := _part(leaves, item))
        }
        described = {**meta, "leaves": leaves_lib.describe(leaves)}
        items["meta"] = ocp.args.JsonSave(seal.make(step, described, score))
        metrics = None if score is None else dict([score])
        self.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)

    def read_leaves(
        self, step: int, meta: dict[str, Any], items: tuple[str, ...]
    ) -> Leaves:
        """The leaves of `items`, of the shapes and dtypes that `meta` tells.

        Raises:
          CheckpointError: they cannot be read.
        """
        targets: dict[str, Any] = {}
        try:
            described = {
                path: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
                for path, leaf in meta["leaves"].items()
            }
            for item in items:
                if part := _part(described, item):
                    target = traverse_util.unflatten_dict(part, sep="/")
                    targets[item] = ocp.args.StandardRestore(target)
            with _quiet_stragglers():
                restored = self.restore(step, args=ocp.args.Composite(**targets))
        except _SPOILED as error:
            raise seal.unreadable(self.directory / str(step), error) from error
        leaves: Leaves = {}
        for item in targets:
            leaves |= traverse_util.flatten_dict(restored[item], sep="/")
        return leaves


@contextlib.contextmanager
def _quiet_stragglers() -> Iterator[None]:
    """Of a read that failed the others go on, and find their event loop closed.

    Each would print a traceback, from a thread and at any time: the hook then stays.
    """
    before = sys.unraisablehook

    def hook(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            before(raised)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = before


def _part(leaves: dict[str, Any], item: str) -> dict[str, Any]:
    return {path: leaf for path, leaf in leaves.items() if _item_of(path) == item}


def _item_of(path: str) -> str:
    if path.startswith(leaves_lib.AVERAGE):
        return "ema"
    return "model" if path.split("/")[0] in leaves_lib.MODEL_KEYS else "training"


def _value(metrics: dict[str, float]) -> float:
    (value,) = metrics.values()
    return value
