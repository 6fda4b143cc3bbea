"""The saves of a run: what its checkpoints say of themselves, and events of each."""

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath

from vgg_flax.config import Config
from vgg_flax.images import preprocessing
from vgg_flax.runs import checkpoint, events
from vgg_flax.training import state
from vgg_flax.weights.card import ModelCard


class Saver:
    """Saves the states of one run; of each save's begin and end it writes an event."""

    def __init__(
        self,
        config: Config,
        workdir: epath.Path,
        class_names: tuple[str, ...],
        checkpoints: checkpoint.Checkpoints,
        happened: events.Events,
    ):
        self._config, self._workdir, self._class_names = config, workdir, class_names
        self._checkpoints, self._events = checkpoints, happened
        self._under_way: int | None = None  # a step not yet known to be saved

    def steps(self) -> list[int]:
        """The finished steps, oldest first."""
        return self._checkpoints.steps()

    def save(
        self,
        step: int,
        fetch: Callable[[], Any],
        *,
        evaluated: bool,
        top1: float | None,
        productive_seconds: float,
    ) -> None:
        """Starts saving a state, when the save before is done.

        Args:
          step: the number of updates made.
          fetch: gives the state, its leaves whole; not called before.
          evaluated: whether the evaluation due at this step was made.
          top1: on the validation split; None: not evaluated.
          productive_seconds: of the goodput so far.

        Raises:
          CheckpointError: the disk is full, or the workdir is gone.
        """
        self.check_still_there()
        data = self._config.data
        card = ModelCard(
            model=state.make_model(self._config.model),
            preprocessing=preprocessing.Preprocessing.of(data),
            class_names=self._class_names,
            train_scale=data.train_scale if data.train_view == "paper" else None,
        )
        meta = {
            "config": dataclasses.asdict(self._config),
            **card.to_json(),
            "evaluated": evaluated,
        }
        self.wait()
        self._events.write("save_started", productive_seconds=productive_seconds)
        self._checkpoints.save(step, fetch(), meta, top1)
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
        if not (self._workdir / "config.json").exists():
            raise checkpoint.CheckpointError(
                f"{self._workdir} has vanished, or its config.json has; bring it back, "
                "then run again to resume, or start anew"
            )
