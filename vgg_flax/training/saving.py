"""The saves of a run: what its checkpoints say of themselves, and events of each."""

import dataclasses
from collections.abc import Callable
from typing import Any

from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.runs import checkpoint
from vgg_flax.runs.events import Events, Position
from vgg_flax.training import state as state_lib
from vgg_flax.training.job import Job
from vgg_flax.weights.card import ModelCard


class Saver:
    """Saves the states of one run; of each save's begin and end it writes an event."""

    def __init__(
        self,
        job: Job,
        position: Position,
        checkpoints: checkpoint.Checkpoints,
        events: Events,
    ):
        """A save is of the `position` at that time."""
        self._job, self._position = job, position
        self._checkpoints, self._events = checkpoints, events
        self._under_way: int | None = None  # a step not yet known to be saved

    def steps(self) -> list[int]:
        """The finished steps, oldest first."""
        return self._checkpoints.steps()

    def best_step(self) -> int | None:
        """That of the best validation, if there was one."""
        return self._checkpoints.best_step()

    def read(self, step: int, *, ema: bool) -> dict[str, Any]:
        """The variables of a finished step, on the host; with `ema` their average."""
        self.wait()
        saved = self._checkpoints.read(step, ("model", "ema") if ema else ("model",))
        return (saved.averaged() if ema else saved).variables

    def newest(self) -> int | None:
        """The last step that is saved, or is being saved; None: there is none yet."""
        return self._under_way or max(self.steps(), default=None)

    def save(
        self,
        fetch: Callable[[], Any],
        *,
        score: tuple[str, float] | None,
        productive_seconds: float,
    ) -> None:
        """Starts saving a state, when the save before is done.

        Args:
          fetch: gives the state, its leaves whole; not called before.
          score: `Metric.score` of what decides, on the validation split; None: not
            validated.
          productive_seconds: of the goodput so far.

        Raises:
          CheckpointError: the disk is full, or the workdir is gone.
          LeaseError: the workdir is another's by now.
        """
        self.check_still_there()
        self._events.check()
        self.wait()
        # This sees, too, that the workdir is still ours.
        self._events.write("save_started", productive_seconds=productive_seconds)
        step = self._position.step
        self._checkpoints.save(step, fetch(), self._meta(), score)
        self._under_way = step

    def wait(self) -> None:
        """Returns when all is saved; raises CheckpointError if that failed."""
        self._checkpoints.wait()
        self.note_finished()

    def note_finished(self) -> None:
        """Writes the event of a save's end, if it has ended; never waits."""
        step = self._under_way
        if step is not None and self._checkpoints.has_saved(step):
            self._events.write("save_finished", step=step)
            self._under_way = None

    def check_still_there(self) -> None:
        """Sees that the workdir is the one that was opened: a save makes missing ones.

        Raises:
          CheckpointError: it has vanished.
        """
        workdir = self._job.workdir
        if not (workdir / "config.json").exists():
            raise checkpoint.CheckpointError(
                f"{workdir} has vanished, or its config.json has; bring it back, "
                "then run again to resume, or start anew"
            )

    def _meta(self) -> dict[str, Any]:
        config, objective = self._job.config, self._job.objective
        data = config.data
        trained = self._job.train_data(max(0, self._position.step - 1))
        card = ModelCard(
            model=state_lib.make_model(config.model),
            preprocessing=Preprocessing.of(data),
            class_names=self._job.class_names,
            train_scale=trained.train_scale if data.train_view == "paper" else None,
            objective=objective.name,
            has_classes=objective.has_classes,
        )
        return {
            "config": dataclasses.asdict(config),
            **card.to_json(),
            "data": self._job.fingerprints,
            "evaluated": self._position.validated,
            "examples_seen": self._job.plan.examples_at(self._position.step),
        }
