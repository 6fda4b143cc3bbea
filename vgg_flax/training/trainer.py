"""The training loop: resume, step, log, evaluate, save, test."""

import math
import signal
import time
from typing import Any

import jax
from etils import epath

from vgg_flax import config as config_lib
from vgg_flax import errors, parallel, storage
from vgg_flax.config import Config
from vgg_flax.data import batches as batches_lib
from vgg_flax.data import splits as splits_lib
from vgg_flax.data.batches import Shard
from vgg_flax.data.splits import Split
from vgg_flax.parallel import distributed, watchdog
from vgg_flax.parallel.signals import Signals
from vgg_flax.runs import checkpoint, directory, events, goodput, log, profiling
from vgg_flax.runs.meter import Meter
from vgg_flax.training import plan as plan_lib
from vgg_flax.training import resumption, saving, schedules, state, validation
from vgg_flax.training import step as step_lib
from vgg_flax.training.plan import Plan


def train_and_evaluate(config: Config, workdir: epath.PathLike) -> dict[str, Any]:
    """Trains as `config` says, or resumes, or finds it done; returns the test record.

    Args:
      config: the run.
      workdir: where `config.json`, `metrics.jsonl`, `events.jsonl`, `curves.png`,
        `tensorboard/` and `checkpoints/` are; made if missing. A run found there is
        continued.

    Returns:
      The last record of the test split: `step`, `loss`, `top1`, `top5`, `count`, ...

    Raises:
      VGGFlaxError: what the person at the keyboard can mend.
    """
    config = config_lib.check(config)
    storage.check_path("--workdir", workdir)
    workdir = epath.Path(workdir).expanduser()
    shard = Shard(jax.process_index(), jax.process_count())
    distributed.check_devices()
    resumption.check(config, jax.device_count())
    run = _Run(config, workdir, shard)
    distributed.check_same(run.facts())
    if shard.process == 0:
        leaves = jax.tree.leaves(run.abstract_state)
        directory.prepare(
            workdir, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        )
    folder = checkpoint.folder_of(workdir)
    with (
        events.Events(workdir, active=shard.process == 0) as happened,
        Signals() as signals,
        checkpoint.Checkpoints(folder, config.keep_checkpoints) as checkpoints,
    ):
        run.start(checkpoints, signals, happened)
        try:
            run.train()
            return run.test()
        finally:
            run.profiler.stop()
            run.watchdog.rest()  # the caller may go on with something else
            run.log.close()


class _Run:
    """One call of `train_and_evaluate`: its parts, and the state as it goes along."""

    def __init__(self, config: Config, workdir: epath.Path, shard: Shard):
        self.goodput = goodput.Goodput()
        data, num_classes = config.data, config.model.num_classes
        self.config, self.workdir, self.shard = config, workdir, shard
        self.train_split = splits_lib.open_split(data, data.train_split, num_classes)
        self.test_split = splits_lib.open_split(data, data.test_split, num_classes)
        self.validation_split = (
            splits_lib.open_split(data, data.validation_split, num_classes)
            if data.validation_split
            else None
        )
        self.plan = Plan.of(config, len(self.train_split))
        self.abstract_state = jax.eval_shape(lambda: state.init_state(config))
        self.shards = state.make_shards(config, jax.device_count())
        self.state: Any = None
        self.step = 0
        self.compiling_since: float | None = None  # of `time.perf_counter`
        self.evaluated = True  # whether the evaluation due at `step` was made

    def facts(self) -> dict[str, Any]:
        """What must be the same in all processes."""
        splits = (self.train_split, self.validation_split, self.test_split)
        return {
            **{f"config.{k}": v for k, v in config_lib.flatten(self.config).items()},
            "workdir": str(self.workdir),
            "data": [
                (s.name, len(s), splits_lib.fingerprint(s), s.class_names)
                for s in splits
                if s is not None
            ],
            "versions": checkpoint.versions(),
            "code": distributed.code_digest(),
        }

    def start(
        self,
        checkpoints: checkpoint.Checkpoints,
        signals: Signals,
        happened: events.Events,
    ) -> None:
        """Restores or makes the state, and says what is coming."""
        self.signals, self.events = signals, happened
        self.saver = saving.Saver(
            self.config,
            self.workdir,
            self.train_split.class_names,
            checkpoints,
            happened,
        )
        self.events.write(
            "start",
            began=self.goodput.began,
            versions=checkpoint.versions(),
            code=distributed.code_digest(),
            devices=jax.device_count(),
            device_kind=jax.devices()[0].device_kind,
            processes=self.shard.processes,
        )
        seconds = self.config.step_timeout_seconds
        self.watchdog = watchdog.Watchdog(seconds if self.shard.processes > 1 else None)
        saved = checkpoints.read_newest(
            lambda step, why: self.events.write("damaged", step=step, reason=str(why))
        )
        if saved is not None:
            resumption.check_same(saved, self.config)
        is_first = self.shard.process == 0
        if is_first:
            settings = config_lib.to_json(self.config)
            (self.workdir / "config.json").write_text(settings)
        if saved is not None:
            self.state = checkpoint.from_leaves(self.abstract_state, saved.leaves)
            self._set_step(saved.step)
            self.evaluated = saved.meta["evaluated"]
            self.events.write("resumed")
        else:
            self.state = resumption.new_state(self.config)
        self.goodput.resume(self.events.past, self.step)
        self.state = self.shards.place(self.state)
        self.log = log.Log(
            self.workdir,
            start_step=self.step,
            evaluated=self.evaluated,
            total_steps=self.plan.total_steps,
            active=is_first,
        )
        self.profiler = profiling.Profiler(
            self.config.profile,
            self.workdir,
            start_step=self.step,
            total_steps=self.plan.total_steps,
            active=is_first,
        )
        self._introduce()
        self._eval_step: Any = None

    def train(self) -> None:
        """Steps until the plan's end, evaluating and saving when due."""
        if not self.evaluated:
            self._evaluate_and_save()
        if self.step == self.plan.total_steps:
            return
        step_fn = self._compile_train_step()
        batches = batches_lib.train_batches(
            self.config.data,
            self.train_split,
            seed=self.config.seed,
            start_step=self.step,
            shard=self.shard,
        )
        meter = Meter(
            self.log,
            batch_size=self.config.data.batch_size,
            steps_per_epoch=self.plan.steps_per_epoch,
            total_steps=self.plan.total_steps,
            log_every_steps=self.config.log_every_steps,
            goodput=self.goodput,
        )
        for batch in parallel.prefetch(batches):
            if self.profiler.begins_with(self.step + 1):
                meter.read_all()
                self.profiler.start()
                meter.restart_clock()
            with profiling.named(self.step + 1):
                self.state, metrics = step_fn(self.state, batch)
            self._set_step(self.step + 1)
            meter.add(self.step, metrics)
            if self.compiling_since is not None:
                meter.read_all()
                self._tell_compiled(self.compiling_since)
            if self.profiler.ends_with(self.step):
                meter.read_all()
                self._stop_profile()
                meter.restart_clock()
            self.saver.note_finished()
            if self.plan.saves_at(self.step):
                meter.read_all()
                self.evaluated = not self.plan.evaluates_at(self.step)
                self._evaluate_and_save()
                meter.restart_clock()
            self.watchdog.step_ended()
            if received := self.signals.poll():
                meter.read_all()
                self._stop(received)
            if self.step == self.plan.total_steps:
                break

    def test(self) -> dict[str, Any]:
        """The test record of the last step, measured unless it is there already."""
        done = [r for r in log.read_records(self.workdir) if r["split"] == "test"]
        if done and done[-1]["step"] == self.step:
            self.log.say(f"complete: {self.workdir} is at its last step, {self.step}")
            record = done[-1]
        else:
            record = self._evaluate("test", self.test_split)
            self.log.draw()
        self.saver.wait()
        self.saver.check_still_there()
        self.events.write("complete", **self.goodput.facts())
        self.log.say(self.goodput.line())
        self.log.say(log.result_line(record, self.workdir))
        return record

    def _compile_train_step(self) -> Any:
        config, plan = self.config, self.plan
        schedule = schedules.make_schedule(
            config.optimizer, plan.steps_per_epoch, plan.total_steps
        )
        mapped = parallel.pmap_step(
            step_lib.make_train_step(config, schedule, self.shards),
            donate_state=True,
            state_axes=self.shards.axes(self.abstract_state),
        )
        start = time.perf_counter()
        shapes = batches_lib.train_batch_shapes(config.data, self.shard)
        compiled = parallel.compile_step(mapped, self.state, shapes)
        if self.shard.processes == 1:
            self._tell_compiled(start)
        else:  # the first call of it compiles
            self.compiling_since = start
        return compiled

    def _tell_compiled(self, start: float) -> None:
        self.compiling_since = None
        seconds = time.perf_counter() - start
        self.log.say(f"compiled the training step in {seconds:.1f} s")
        self.events.write("compiled", seconds=round(seconds, 3))

    def _stop_profile(self) -> None:
        self.profiler.stop()
        first, last = self.profiler.first_step, self.profiler.last_step
        self.events.write("profiled", first_step=first, last_step=last)
        folder = self.workdir / "profile"
        self.log.say(f"profiled steps {first} to {last}: xprof --logdir={folder}")

    def _set_step(self, step: int) -> None:
        self.step = self.events.step = step

    def _evaluate_and_save(self) -> None:
        top1 = None
        if not self.evaluated and self.validation_split is not None:
            record = self._evaluate("validation", self.validation_split)
            top1 = record["top1"]
            plateau = schedules.update_plateau(
                self.config.optimizer, self.state.plateau, top1
            )
            self.state = self.state.replace(plateau=parallel.replicate(plateau))
        if not self.evaluated:
            self.log.draw()
        self.evaluated = True
        self._save(top1)

    def _save(self, top1: float | None) -> None:
        self.saver.save(
            self.step,
            lambda: self.shards.fetch(self.state),
            evaluated=self.evaluated,
            top1=top1,
            productive_seconds=self.goodput.productive_seconds,
        )

    def _evaluate(self, name: str, split: Split) -> dict[str, Any]:
        if self._eval_step is None:
            mapped = parallel.pmap_step(
                step_lib.make_eval_step(self.config, self.shards),
                donate_state=False,
                state_axes=self.shards.axes(self.abstract_state.variables),
            )
            shapes = batches_lib.eval_batch_shapes(self.config.data, self.shard)
            self._eval_step = parallel.compile_step(
                mapped, self.state.variables, shapes
            )

        def after_batch() -> None:
            self.watchdog.step_ended()
            if received := self.signals.poll():
                self._stop(received)

        start = time.perf_counter()
        self.events.write("evaluation_started", split=name)
        batches = batches_lib.eval_batches(self.config.data, split, shard=self.shard)
        result = validation.evaluate(
            self._eval_step,
            self.state.variables,
            parallel.prefetch(batches),
            len(split),
            skipping=self.config.data.on_bad_image == "skip",
            after_batch=after_batch,
        )
        seconds = time.perf_counter() - start
        self.events.write(
            "evaluation_finished",
            split=name,
            seconds=round(seconds, 3),
            top1=result["top1"],
        )
        record = {
            "step": self.step,
            "epoch": self.step / self.plan.steps_per_epoch,
            "split": name,
            **result,
            "images_per_second": round(result["count"] / seconds, 1),
        }
        self.log.record(record)
        return record

    def _stop(self, received: signal.Signals) -> None:
        """Saves where the run stands and leaves."""
        if self.step not in self.saver.steps():
            self._save(None)
        self.saver.wait()
        self.events.write("stopped", signal=received.name, **self.goodput.facts())
        self.log.say(self.goodput.line())
        raise errors.Interrupted(
            f"stopped by {received.name} at step {self.step} of "
            f"{self.plan.total_steps}, which is saved; run the same command again to "
            "resume",
            128 + received,
        )

    def _introduce(self) -> None:
        leaves = jax.tree.leaves(self.abstract_state.params)
        splits = (self.train_split, self.test_split, self.validation_split)
        for line in plan_lib.introduction(
            self.config,
            self.workdir,
            self.plan,
            parameters=sum(math.prod(leaf.shape) for leaf in leaves),
            examples={s.name: len(s) for s in splits if s is not None},
            step=self.step,
        ):
            self.log.say(line)
