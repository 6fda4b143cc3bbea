"""Checkpoints that say what they are and are checked: the only file that says orbax.

A step's folder holds three items: `model` (params, batch_stats), `training` (the rest
of the state) and `meta` (config, variant, preprocessing, classes, and of every leaf
its shape, dtype and crc32; a flipped bit in an array restores without an error).
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vgg_flax.parallel import distributed
from vgg_flax.runs import directory
from vgg_flax.runs import leaves as leaves_lib
from vgg_flax.runs.leaves import Checkpoint, CheckpointError, Leaves

# Orbax warns of each save without metrics, which one between evaluations has not.
absl_logging.get_absl_logger().addFilter(
    lambda record: "Requested `tracked_metric`" not in record.getMessage()
)

Tree = dict[str, Any]

_ITEMS = ("model", "training")
_LOOKS = 5  # at a run that goes on and removes what is being read


class _StepGone(CheckpointError):
    """What is missing may be because the run has just removed the step."""


class _Manager(ocp.CheckpointManager):
    """Leaves JAX's coordinator to `Signals`.

    Orbax asks it, at each save and from a thread of its own, whether to stop at this
    step, and JAX agrees on a stop by the number that was asked for last: one that the
    polls of `Signals`, which count evaluated batches too, may have passed long ago.
    The signal was lost then, and the run went on.
    """

    def reached_preemption(self, step: int) -> bool:
        del step  # whoever saves because of a signal has heard of it already
        return False


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, the newest and the best kept."""

    def __init__(self, folder: epath.PathLike, keep: int, *, read_only: bool = False):
        """Opens the folder; `read_only`, also while another process saves into it."""
        self._folder = epath.Path(folder)
        self._saving: int | None = None
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        self._manager = _Manager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_score,
                best_mode="max",
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                # A run that is saving has one, and would lose it to its readers.
                cleanup_tmp_directories=not read_only,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._manager.close()  # waits for a save under way, and raises its error
        except (OSError, ValueError) as error:
            raise self._save_error(self._saving, error) from error

    def save(
        self,
        step: int,
        state: Any,
        meta: dict[str, Any],
        score: tuple[str, float] | None,
    ) -> None:
        """Starts saving `state` as `step`; its buffers may be donated at once.

        Args:
          step: the number of updates made.
          state: a pytree of arrays, equal on all devices.
          meta: JSON-like; what the checkpoint is.
          score: a name and what it is on the validation split, for "best", which has
            the largest; None if not validated.

        Raises:
          CheckpointError: the disk is full, or the folder is gone or read-only.
        """
        leaves = leaves_lib.to_leaves(state)
        meta = {
            **meta,
            "versions": directory.versions(),
            "leaves": leaves_lib.describe(leaves),
        }
        items = {
            item: ocp.args.StandardSave(_nest(part))
            for item in _ITEMS
            if (part := _part(leaves, item))
        }
        args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
        metrics = None if score is None else dict([score])
        self._saving = step
        try:
            if step in self.steps():  # saved by a signal, and evaluated only now
                self._move(step, "replaced")
            self._manager.save(step, args=args, metrics=metrics, force=True)
        except (OSError, ValueError) as error:
            raise self._save_error(step, error) from error

    def wait(self) -> None:
        """Returns when all saves are on disk; raises CheckpointError if one failed."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._save_error(self._saving, error) from error
        self._settle_replaced()

    def steps(self) -> list[int]:
        """The finished steps, oldest first."""
        return sorted(self._manager.all_steps())

    def has_saved(self, step: int) -> bool:
        """Whether no save is under way and that of `step` is whole, on disk."""
        path = self._folder / str(step)
        return (
            not self._manager.is_saving_in_progress()
            and path.exists()
            and ocp.utils.is_checkpoint_finalized(path)
        )

    def best_step(self) -> int | None:
        """The step with the highest score, if any was validated."""
        return self._manager.best_step()

    def find(self, step: int | str) -> int:
        """The number of `step`: a number, "last" or "best".

        Raises:
          CheckpointError: there is none such.
        """
        if isinstance(step, int):
            return step
        if step not in ("last", "best"):
            raise CheckpointError(f"step={step!r}; expected a number, 'last' or 'best'")
        if not self.steps():
            raise CheckpointError(f"{self._folder} has no finished checkpoint")
        chosen = self.best_step() if step == "best" else self.steps()[-1]
        if chosen is None:
            raise CheckpointError(
                f"{self._folder} has no best step: nothing was validated; "
                "use step='last'"
            )
        return chosen

    def read_newest(
        self, on_damaged: Callable[[int, CheckpointError], None] = lambda *_: None
    ) -> Checkpoint | None:
        """The newest undamaged checkpoint; None if there never was one.

        Damaged ones are reported and moved to `damaged/` beside the folder.

        Args:
          on_damaged: called with the step and the error of each.

        Raises:
          CheckpointError: there are checkpoints, and all of them are damaged.
        """
        self._settle_replaced()
        damaged = []
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except CheckpointError as error:
                logging.error("%s; falling back to the one before", error)
                damaged.append(step)
                self._move(step, "damaged")
                on_damaged(step, error)
        if damaged:
            raise CheckpointError(
                f"all checkpoints in {self._folder} are damaged: steps {damaged}, now "
                f"in {self._folder.parent / 'damaged'}; start anew in another --workdir"
            )
        return None

    def read(self, step: int, items: tuple[str, ...] = _ITEMS) -> Checkpoint:
        """Reads a step, checking each leaf's shape, dtype and crc32.

        Raises:
          CheckpointError: no such step, or something in it is damaged.
        """
        if step not in self.steps():
            raise CheckpointError(
                f"no checkpoint of step {step} in {self._folder}; it has {self.steps()}"
            )
        try:
            meta_args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = self._manager.restore(step, args=meta_args)["meta"]
            described = {
                path: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
                for path, leaf in meta["leaves"].items()
            }
            targets = {
                item: ocp.args.StandardRestore(_nest(part))
                for item in items
                if (part := _part(described, item))
            }
            restored = self._manager.restore(step, args=ocp.args.Composite(**targets))
            leaves: Leaves = {}
            for item in targets:
                leaves |= traverse_util.flatten_dict(restored[item], sep="/")
            actual = leaves_lib.describe(leaves)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            first_line = str(error).splitlines()[:1]
            path = self._folder / str(step)
            time.sleep(0.2)  # what is being removed is gone by then
            whole = all((path / item).exists() for item in ("meta", *items))
            raise (CheckpointError if whole else _StepGone)(
                f"checkpoint {path} cannot be read: "
                f"{type(error).__name__}: {''.join(first_line)[:200]}"
            ) from error
        wrong = [path for path in actual if actual[path] != meta["leaves"][path]]
        if wrong:
            listed = ", ".join(wrong[:3]) + " and others" * (len(wrong) > 3)
            raise CheckpointError(
                f"checkpoint {self._folder / str(step)} is damaged: {listed} differ "
                "from what was saved (crc32); use another step, or copy it anew"
            )
        return Checkpoint(step, leaves, meta)

    def _move(self, step: int, name: str) -> None:
        """Moves a step's folder to the folder `name` beside this one."""
        if jax.process_index() == 0:
            target = self._folder.parent / name / str(step)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmtree()
            (self._folder / str(step)).rename(target)
        self._reload()

    def _settle_replaced(self) -> None:
        """Brings a step back whose second save was cut off; drops it where it wasn't.

        A step is saved twice if a signal came while it was evaluated. Deleting the
        first before the second is whole would leave neither to a kill in between.
        """
        replaced = self._folder.parent / "replaced"
        if jax.process_index() == 0 and replaced.exists():
            for step in replaced.iterdir():
                if not (self._folder / step.name).exists():
                    step.rename(self._folder / step.name)
            replaced.rmtree()
        self._reload()

    def _reload(self) -> None:
        # Process 0 has moved folders; the others are to see it done.
        distributed.wait_for_all("checkpoints moved")
        self._manager.reload()

    def _save_error(self, step: int | None, error: Exception) -> CheckpointError:
        there = [s for s in self.steps() if (self._folder / str(s)).is_dir()]
        return CheckpointError(
            f"cannot save step {step} in {self._folder}: {error}; the earlier steps "
            f"{there} are intact: make room or access, then run again to resume"
        )


def exists(workdir: epath.PathLike) -> bool:
    """Whether `workdir` is a run directory with checkpoints."""
    return folder_of(workdir).is_dir()


def folder_of(workdir: epath.PathLike) -> epath.Path:
    """Where a run keeps its checkpoints."""
    return epath.Path(workdir).expanduser().resolve() / "checkpoints"


def load(workdir: epath.PathLike, step: int | str = "last") -> Checkpoint:
    """The model part of a run's checkpoint: `step` a number, "last" or "best".

    Raises:
      CheckpointError: no run directory, no such step, or it is damaged.

    A run goes on beside its readers: a step that it removes is looked for anew.
    """
    if not exists(workdir):
        raise CheckpointError(
            f"{epath.Path(workdir)} has no folder 'checkpoints'; expected the "
            "--workdir of a training run"
        )
    folder, gone = folder_of(workdir), None
    for _ in range(_LOOKS):
        try:
            with Checkpoints(folder, keep=1, read_only=True) as checkpoints:
                return checkpoints.read(checkpoints.find(step), items=("model",))
        except (FileNotFoundError, NotADirectoryError, _StepGone) as error:
            gone = error
    raise CheckpointError(f"{gone}; looked {_LOOKS} times") from gone


def save_variables(
    workdir: epath.PathLike, variables: Tree, meta: dict[str, Any]
) -> None:
    """Writes a net alone, as step 0 of a new run directory that `load` reads.

    Raises:
      CheckpointError: there are checkpoints already, or they cannot be written.
    """
    if exists(workdir):
        raise CheckpointError(f"{workdir} holds checkpoints already; choose another")
    folder = folder_of(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{workdir} cannot be written: {error}") from error
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(0, variables, meta, None)
        checkpoints.wait()


def _part(leaves: dict[str, Any], item: str) -> dict[str, Any]:
    keys, model = leaves_lib.MODEL_KEYS, item == "model"
    return {k: v for k, v in leaves.items() if (k.split("/")[0] in keys) == model}


def _nest(leaves: dict[str, Any]) -> Tree:
    return traverse_util.unflatten_dict(leaves, sep="/")


def _score(metrics: dict[str, float]) -> float:
    (score,) = metrics.values()
    return score
