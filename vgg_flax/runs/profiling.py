"""A trace of some training steps in `WORKDIR/profile`, for xprof and TensorBoard."""

import logging
import tempfile

import jax
from etils import epath

from vgg_flax.config import ProfileConfig


class Profiler:
    """Traces `config.num_steps` consecutive steps of this start, once.

    Steps are numbered by the updates made after them. A start's first step, which may
    compile, is never traced: a start that is at or past `config.start_step` begins
    with its second. Of several processes the active one alone traces, its own devices.
    """

    def __init__(
        self,
        config: ProfileConfig,
        workdir: epath.Path,
        *,
        start_step: int,
        total_steps: int,
        active: bool,
    ):
        """`start_step`: the updates made when this start began."""
        self.first_step = max(config.start_step, start_step + 2)
        self.last_step = min(self.first_step + config.num_steps - 1, total_steps)
        self._active = active and self.first_step <= self.last_step
        self._folder = workdir / "profile"
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def begins_with(self, step: int) -> bool:
        """Whether to call `start` before `step`."""
        return self._active and step == self.first_step

    def ends_with(self, step: int) -> bool:
        """Whether to call `stop` after `step`."""
        return self._active and step == self.last_step

    def start(self) -> None:
        """Traces from here on, aside: the profiler itself writes to local disks only.

        No step should be under way, here and at `stop`.
        """
        self._scratch = tempfile.TemporaryDirectory()
        jax.profiler.start_trace(self._scratch.name)

    def stop(self) -> None:
        """Ends the trace, if one is under way, and puts it into the run's directory.

        A trace that cannot be written there is lost, and logged: training goes on.
        """
        if self._scratch is None:
            return
        with self._scratch as scratch:
            self._scratch = None
            jax.profiler.stop_trace()
            try:
                for path in epath.Path(scratch).glob("plugins/profile/*/*"):
                    target = self._folder / path.relative_to(scratch)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.copy(target)
            except OSError as error:
                logging.error("the profile is not in %s: %s", self._folder, error)


def named(step: int) -> jax.profiler.StepTraceAnnotation:
    """A context for sending `step`, by which a trace tells the steps apart."""
    return jax.profiler.StepTraceAnnotation("train", step_num=step)
