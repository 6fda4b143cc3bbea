"""The training loop: resume, step, log, validate, save, test."""

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from etils import epath

from vgg_flax import config as config_lib
from vgg_flax import parallel, storage
from vgg_flax.config import Config
from vgg_flax.data.batches import faster_batches
from vgg_flax.errors import Interrupted
from vgg_flax.parallel import distributed
from vgg_flax.parallel.signals import Signals
from vgg_flax.parallel.watchdog import Watchdog
from vgg_flax.runs import checkpoint, directory, log, profiling
from vgg_flax.runs.events import Events, Position
from vgg_flax.runs.goodput import Goodput
from vgg_flax.runs.lease import Lease
from vgg_flax.runs.log import Log
from vgg_flax.runs.meter import Meter
from vgg_flax.runs.profiling import Profiler
from vgg_flax.training import resumption, schedules
from vgg_flax.training.job import Job
from vgg_flax.training.measurements import Measurements
from vgg_flax.training.objectives import CLASSIFICATION, Objective
from vgg_flax.training.saving import Saver
from vgg_flax.training.state import TrainState


def train_and_evaluate(
    config: Config,
    workdir: epath.PathLike,
    objective: Objective = CLASSIFICATION,
    optimizer: optax.GradientTransformation | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, or resumes, or finds it done; returns the test record.

    Args:
      config: the run.
      workdir: where `config.json`, `metrics.jsonl`, `events.jsonl`, `curves.png`,
        `tensorboard/` and `checkpoints/` are; made if missing. A run found there is
        continued.
      objective: what is minimised and told, as `config.objective` names it.
      optimizer: of one's own and whole, where `config.optimizer.name` is "custom".

    Returns:
      The last record of the test split: `step`, `loss`, `top1`, `top5`, `count`, ...

    Raises:
      VGGFlaxError: what the person at the keyboard can mend.
    """
    with open_run(config, workdir, objective, optimizer) as run:
        run.train()
        return run.test()


@contextlib.contextmanager
def open_run(
    config: Config,
    workdir: epath.PathLike,
    objective: Objective = CLASSIFICATION,
    optimizer: optax.GradientTransformation | None = None,
) -> Iterator["Run"]:
    """A run that is about to go on, its state restored or made; closed at the end.

    Args and errors as of `train_and_evaluate`.
    """
    goodput, position = Goodput(), Position()
    job = Job.prepare(config, workdir, objective, optimizer)
    distributed.by_first(lambda: directory.prepare(job.workdir, job.state_bytes))
    folder = checkpoint.folder_of(job.workdir)
    several = job.shard.processes > 1
    with (
        Lease(job.workdir / "lease.json", f"--workdir={job.workdir}") as lease,
        Events(job.workdir, position, active=job.is_first, check=lease.check) as events,
        Signals() as signals,
        checkpoint.Checkpoints(folder, config.keep_checkpoints) as checkpoints,
        Watchdog(config.step_timeout_seconds if several else None) as watchdog,
    ):
        events.write(
            "start",
            began=goodput.began,
            versions=directory.versions(),
            code=distributed.code_digest(),
            devices=jax.device_count(),
            device_kind=jax.devices()[0].device_kind,
            processes=job.shard.processes,
        )
        job, state = _begin(job, position, checkpoints, events)
        state = job.fc_shards.place(state)  # what the host has of it is let go
        goodput.resume(events.past, position.step)
        with (
            Log(
                job.workdir,
                objective.metrics,
                start=position,
                total_steps=job.plan.total_steps,
                active=job.is_first,
                check=lease.check,
            ) as run_log,
            Profiler(
                job.config.profile,
                job.workdir,
                start_step=position.step,
                total_steps=job.plan.total_steps,
                active=job.is_first,
            ) as profiler,
        ):
            for line in job.introduction(position.step):
                run_log.say(line)
            yield Run(
                job=job,
                state=state,
                position=position,
                events=events,
                signals=signals,
                watchdog=watchdog,
                log=run_log,
                profiler=profiler,
                goodput=goodput,
                saver=Saver(job, position, checkpoints, events),
            )


def _begin(
    job: Job,
    position: Position,
    checkpoints: checkpoint.Checkpoints,
    events: Events,
) -> tuple[Job, TrainState]:
    """The job and its state to go on from; sets the position, writes `config.json`."""
    saved = checkpoints.read_newest(
        lambda step, why: events.write("damaged", step=step, reason=str(why))
    )
    job, state = resumption.first_state(job, saved)
    if job.is_first:
        path = job.workdir / "config.json"
        with storage.whole_file(path, storage.RunDirectoryError) as file:
            file.write_text(config_lib.to_json(job.config))
    if saved is None:
        return job, state
    position.step, position.validated = saved.step, saved.meta["evaluated"]
    events.write("resumed")
    return job.resumed(saved.step, resumption.examples_seen(saved, job)), state


@dataclasses.dataclass
class Run:
    """A run under way: its job, its state, and those that watch it. See `open_run`.

    Attributes:
      job: what is trained.
      state: placed on the devices.
      position: the step where the state stands.
      events, signals, watchdog, log, profiler, goodput, saver: the run's own.
    """

    job: Job
    state: TrainState
    position: Position
    events: Events
    signals: Signals
    watchdog: Watchdog
    log: Log
    profiler: Profiler
    goodput: Goodput
    saver: Saver

    def train(self, after_step: Callable[[int], None] = lambda _: None) -> None:
        """Steps until the plan's end, validating and saving when due.

        Args:
          after_step: called with the updates made, after each step and its save.

        Raises:
          Interrupted: a signal came; the state is saved.
          NonFiniteError: the loss, the gradients or the params are no numbers.
        """
        plan, position = self.job.plan, self.position
        if not position.validated:
            self._validate_and_save()
        if position.step == plan.total_steps or self._measurements.is_stale():
            return
        step_fn, compiling_since, side = None, None, 0
        meter = self._make_meter()
        batches = meter.drawn(self.job.train_batches(position.step))
        for batch in parallel.prefetch(batches):
            if (new := self.job.train_data(position.step).crop_size) != side:
                side, step_fn = new, None  # the one before has let its memory go
                with meter.paused():
                    step_fn, compiling_since = self._compile()
            assert step_fn is not None  # no side is 0
            if self.profiler.begins_with(position.step + 1):
                with meter.paused():
                    self.profiler.start()
            with profiling.named(position.step + 1):
                self.state, sums = step_fn(self.state, batch)
            position.step += 1
            is_over = position.step == plan.total_steps
            meter.add(position.step, sums)
            if compiling_since is not None:
                with meter.paused():
                    compiling_since = self._tell_compiled(compiling_since)
            self._profile_to(position.step, meter)
            self.saver.note_finished()
            if plan.saves_at(position.step):
                position.validated = not plan.validates_at(position.step)
                with meter.paused():
                    self._validate_and_save()
                is_over = is_over or self._measurements.is_stale()
            self.watchdog.step_ended()
            if received := self.signals.poll():
                meter.read_all()
                self._stop(received)
            after_step(position.step)
            if is_over:
                break

    def test(self) -> dict[str, Any]:
        """The record of test that decides, measured unless it is there already.

        Of the last step or, as `config.test_step` says, of the best; of the average,
        where there is one; of validation, where the data have no test split.
        """
        workdir, step = self.job.workdir, self.position.step
        if self.job.config.test_step == "best":
            self.saver.wait()
            step = self.saver.best_step() or step
        split = "test" if "test" in self.job.splits else "validation"
        left = self._measurements.missing(split, step)
        for ema in left:
            if step == self.position.step:
                self.measure(split, ema=ema)
            else:
                best = self.job.fc_shards.place(self.saver.read(step, ema=ema))
                self._measurements.measure(split, best, step, ema=ema)
        if not left and split == "test":
            self.log.say(
                f"complete: {workdir} is at its last step, {self.position.step}"
            )
        else:
            self.log.draw(last=True)
        self.saver.wait()
        self.saver.check_still_there()
        self.events.write("complete", **self.goodput.facts())
        self.log.say(self.goodput.line())
        if count := len(self.job.skipped):
            self.log.say(f"images skipped since this start, each told once: {count}")
        record = self._measurements.decisive(split, step)
        self.log.say(log.result_line(record, self.job.objective.metrics, workdir))
        return record

    def measure(self, name: str, *, ema: bool = False) -> dict[str, Any]:
        """The record of a whole split with the state as it is, which is logged.

        Args:
          name: of the split.
          ema: whether of the average.
        """
        state = self.state
        return self._measurements.measure(
            name,
            state.averaged_variables if ema else state.variables,
            self.position.step,
            ema=ema,
        )

    @functools.cached_property
    def _measurements(self) -> Measurements:
        def after_batch() -> None:
            self.watchdog.step_ended()
            if received := self.signals.poll():
                self._stop(received)

        return Measurements(self.job, self.log, self.events, after_batch)

    def _compile(self) -> tuple[Any, float | None]:
        """The step; and when its compiling began, if the first call is to end it."""
        self.watchdog.rest()
        start = time.perf_counter()
        step_fn = self.job.compile_train_step(self.state, self.position.step)
        if self.job.shard.processes > 1:
            self.goodput.compiles()
            return step_fn, start
        return step_fn, self._tell_compiled(start)

    def _tell_compiled(self, start: float) -> None:
        seconds = time.perf_counter() - start
        self.log.say(f"compiled the training step in {seconds:.1f} s")
        self.events.write("compiled", seconds=round(seconds, 3))

    def _make_meter(self) -> Meter:
        config, plan = self.job.config, self.job.plan
        return Meter(
            self.log,
            self.job.objective.metrics,
            batch_size=config.data.batch_size,
            epoch_at=plan.epoch_at,
            total_steps=plan.total_steps,
            log_every_steps=config.log_every_steps,
            kept=self.saver.newest,
            goodput=self.goodput,
            faster_data=faster_batches(config.data),
        )

    def _profile_to(self, step: int, meter: Meter) -> None:
        if not self.profiler.ends_with(step):
            return
        with meter.paused():
            self.profiler.stop()
        first, last = self.profiler.first_step, self.profiler.last_step
        self.events.write("profiled", first_step=first, last_step=last)
        folder = self.job.workdir / "profile"
        self.log.say(f"profiled steps {first} to {last}: xprof --logdir={folder}")

    def _validate_and_save(self) -> None:
        """Validates, if that is due, and saves; the plateau hears of it."""
        score = None
        if not self.position.validated and "validation" in self.job.splits:
            for ema in self._measurements.kinds:
                score = self._measurements.score(self.measure("validation", ema=ema))
            assert score is not None  # of the last kind
            plateau = schedules.update_plateau(
                self.job.config.optimizer, self.state.plateau, score[1]
            )
            self.state = self.state.replace(plateau=parallel.replicate(plateau))
        if not self.position.validated:
            self.log.draw()
        self.position.validated = True
        self._save(score)

    def _save(self, score: tuple[str, float] | None) -> None:
        self.saver.save(
            lambda: self.job.fc_shards.fetch(self.state),
            score=score,
            productive_seconds=self.goodput.productive_seconds,
        )

    def _stop(self, received: signal.Signals) -> None:
        """Saves where the run stands and leaves."""
        step = self.position.step
        if step not in self.saver.steps():
            self._save(None)
        self.saver.wait()
        self.events.write("stopped", signal=received.name, **self.goodput.facts())
        self.log.say(self.goodput.line())
        raise Interrupted(
            f"stopped by {received.name} at step {step} of "
            f"{self.job.plan.total_steps}, which is saved; run the same command again "
            "to resume",
            128 + received,
        )
