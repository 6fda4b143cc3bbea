"""Checkpoints that say what they are and are checked: saved, found, read, set aside.

`step_folders` writes and reads them, under a `seal`; a flipped bit in an array restores
without an error, and so the seal has a crc32 of each.
"""

import logging
import time
from collections.abc import Callable, Collection
from typing import Any

import jax
from etils import epath

from vgg_flax import console, storage
from vgg_flax.parallel import distributed
from vgg_flax.runs import directory, seal, step_folders
from vgg_flax.runs import leaves as leaves_lib
from vgg_flax.runs.leaves import Checkpoint, CheckpointError, DamagedStep

_LOOKS = 5  # at a run that goes on and removes what is being read


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, the newest and the best kept."""

    def __init__(self, folder: epath.PathLike, keep: int, *, read_only: bool = False):
        """Opens the folder; `read_only`, also while another process saves into it."""
        self._folder = epath.Path(folder)
        directory.check_name(self._folder)
        self._saving: int | None = None
        self._scores: dict[int, tuple[str, float] | None] = {}  # as far as known
        self._read_only = read_only
        self._manager = step_folders.Manager(
            self._folder, keep, self._read_score, read_only=read_only
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._manager.close()  # waits for a save under way, and raises its error
            self._empty_removed()
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
        meta = {**meta, "versions": directory.versions()}
        self._saving = step
        try:
            if step in self.steps():  # saved by a signal, and evaluated only now
                self._move(step, "replaced")
            self._scores[step] = score
            self._manager.save_sealed(step, leaves, meta, score)
        except (OSError, ValueError) as error:
            raise self._save_error(step, error) from error

    def wait(self) -> None:
        """Returns when all saves are on disk; raises CheckpointError if one failed."""
        try:
            self._manager.wait_until_finished()
            self._empty_removed()
        except (OSError, ValueError) as error:
            raise self._save_error(self._saving, error) from error
        self._settle_replaced()

    def steps(self) -> list[int]:
        """The finished steps, oldest first."""
        return sorted(self._manager.all_steps())

    def has_saved(self, step: int) -> bool:
        """Whether no save is under way and that of `step` is whole, on disk."""
        return not self._manager.is_saving_in_progress() and step_folders.is_whole(
            self._folder / str(step)
        )

    def best_step(self, without: Collection[int] = ()) -> int | None:
        """The step with the highest score, if any was validated, the newest of equals.

        Args:
          without: steps that are not asked for.
        """
        scores = {step: self._read_score(step) for step in self.steps()}
        return max(
            (step for step in scores if scores[step] and step not in without),
            key=lambda step: ((scores[step] or ("", 0.0))[1], step),
            default=None,
        )

    def find(self, step: int | str, without: Collection[int] = ()) -> int:
        """The number of `step`: a number, "last" or "best".

        Args:
          without: damaged steps, which are neither.

        Raises:
          CheckpointError: there is none such.
          DamagedStep: whether a step is the best cannot be told.
        """
        if isinstance(step, int):
            return step
        if step not in ("last", "best"):
            raise CheckpointError(f"step={step!r}; expected a number, 'last' or 'best'")
        left = [s for s in self.steps() if s not in without]
        if not left and without:
            raise CheckpointError(
                f"all checkpoints in {self._folder} are damaged: steps {list(without)}"
            )
        if not left:
            raise CheckpointError(f"{self._folder} has no finished checkpoint")
        if step == "last":
            return left[-1]
        for other in left:
            self._check(other)
        best = self.best_step(without)
        if best is None:
            raise CheckpointError(
                f"{self._folder} has no best step: nothing was validated; "
                "use step='last'"
            )
        return best

    def read_newest(
        self, on_damaged: Callable[[int, CheckpointError], None] = lambda *_: None
    ) -> Checkpoint | None:
        """The newest undamaged checkpoint; None if there never was one.

        Damaged ones are reported and moved to `damaged/` beside the folder: those that
        are newer, and the older ones that do not say truly what they are.

        Args:
          on_damaged: called with the step and the error of each.

        Raises:
          CheckpointError: there are checkpoints, and all of them are damaged.
        """
        self._settle_replaced()
        self._empty_removed()
        self.tell_ignored()
        newest = None
        for step in reversed(self.steps()):
            try:
                if newest is None:
                    newest = self.read(step)
                else:
                    self._check(step)
            except DamagedStep as error:
                instead = "falling back to the one before" * (newest is None)
                logging.error("%s; %s", error, instead or "it is set aside")
                self._move(step, "damaged")
                on_damaged(step, error)
        aside = self._folder.parent / "damaged"
        # Those of earlier starts too: the next start after this error is no new run.
        damaged = step_folders.numbers(aside) if aside.is_dir() else []
        if newest is None and damaged:
            raise CheckpointError(
                f"all checkpoints in {self._folder} are damaged: steps {damaged}, now "
                f"in {aside}; move them back if only reading failed, or start anew in "
                "another --workdir"
            )
        return newest

    def read(
        self, step: int, items: tuple[str, ...] = step_folders.ITEMS
    ) -> Checkpoint:
        """Reads a step, checking its seal and each leaf's shape, dtype and crc32.

        Raises:
          CheckpointError: no such step.
          DamagedStep: something in it is not what was saved.
        """
        if step not in self.steps():
            raise CheckpointError(
                f"no checkpoint of step {step} in {self._folder}; it has {self.steps()}"
            )
        folder = self._folder / str(step)
        try:
            statement = seal.read(folder)
            leaves = self._manager.read_leaves(step, statement.meta, items)
            leaves_lib.check(folder, leaves, statement.meta["leaves"])
            if not statement.sealed:
                seal.check_number(folder, leaves)
        except CheckpointError as error:
            raise self._damaged(step, error, items) from error
        return Checkpoint(step, leaves, statement.meta)

    def tell_ignored(self) -> None:
        """Tells in one line what else lies among the steps."""
        ignored = step_folders.ignored(self._folder)
        if ignored:
            more = f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
            console.say(
                f"{self._folder}: {', '.join(map(repr, ignored[:5]))}{more} ignored; "
                "a step's folder is named by its number alone"
            )

    def _read_score(self, step: int) -> tuple[str, float] | None:
        """None also where it cannot be read: whoever reads the step is told of it."""
        if step not in self._scores:
            try:
                self._scores[step] = seal.read(self._folder / str(step)).score
            except CheckpointError:
                return None
        return self._scores[step]

    def _check(self, step: int) -> None:
        """Raises DamagedStep where a step does not say truly what it is."""
        try:
            seal.read(self._folder / str(step))
        except CheckpointError as error:
            raise self._damaged(step, error, ()) from error

    def _damaged(
        self, step: int, error: CheckpointError, items: tuple[str, ...]
    ) -> DamagedStep:
        is_going = False
        if self._read_only:
            time.sleep(0.2)  # what is being removed is gone by then
            folder = self._folder / str(step)
            is_going = not all((folder / item).exists() for item in ("meta", *items))
        return DamagedStep(step, error, is_going)

    def _move(self, step: int, name: str) -> None:
        """Moves a step's folder to the folder `name` beside this one."""
        if jax.process_index() == 0:
            target = self._folder.parent / name / str(step)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
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

    def _empty_removed(self) -> None:
        removed = self._folder / step_folders.REMOVED
        if jax.process_index() == 0 and not self._read_only and removed.exists():
            removed.rmtree()

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
    return storage.expanded(workdir).resolve() / "checkpoints"


def load(
    workdir: epath.PathLike, step: int | str = "last", *, ema: bool = False
) -> Checkpoint:
    """The model part of a run's checkpoint: `step` a number, "last" or "best".

    Of the last and best, a damaged one is told and left out. With `ema` the average.
    A run goes on beside its readers: a step that it removes is looked for anew.

    Raises:
      CheckpointError: no run directory, no such step, it is damaged, or has no average.
    """
    if not exists(workdir):
        raise CheckpointError(
            f"{epath.Path(workdir)} has no folder 'checkpoints'; expected the "
            "--workdir of a training run"
        )
    folder, damaged, looks = folder_of(workdir), list[int](), 0
    while True:
        try:
            with Checkpoints(folder, keep=1, read_only=True) as checkpoints:
                if looks == 0 and not damaged:
                    checkpoints.tell_ignored()
                chosen = checkpoints.find(step, without=damaged)
                saved = checkpoints.read(
                    chosen, ("model", "ema") if ema else ("model",)
                )
                return saved.averaged() if ema else saved
        except (FileNotFoundError, NotADirectoryError, DamagedStep) as error:
            looks += 1
            is_damage = isinstance(error, DamagedStep)
            if looks < _LOOKS and (not is_damage or error.is_going):
                continue
            if not is_damage:
                raise CheckpointError(f"{error}; looked {looks} times") from error
            if isinstance(step, int):
                raise
            logging.error("%s; going on without it", error)
            damaged.append(error.step)


def save_variables(
    workdir: epath.PathLike, variables: dict[str, Any], meta: dict[str, Any]
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
