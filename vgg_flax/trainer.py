"""The training loop: resume, step, log, evaluate, save, test."""

import dataclasses
import math
import signal
import time
from typing import Any

import jax
from etils import epath

from vgg_flax import (
    checkpoint,
    dataset,
    distributed,
    evaluation,
    events,
    optimizer,
    parallel,
    preprocess,
    profiling,
    progress,
    report,
    run_directory,
    starting,
    train_step,
)
from vgg_flax import config as config_lib
from vgg_flax.config import Config, ConfigError
from vgg_flax.plan import Plan


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
    workdir = epath.Path(workdir).expanduser()
    shard = dataset.Shard(jax.process_index(), jax.process_count())
    distributed.check_devices()
    _check_batch_sizes(config)
    run = _Run(config, workdir, shard)
    distributed.check_same(run.facts())
    if shard.process == 0:
        leaves = jax.tree.leaves(run.abstract_state)
        run_directory.prepare(
            workdir, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        )
    folder = checkpoint.folder_of(workdir)
    with (
        events.Events(workdir, active=shard.process == 0) as happened,
        distributed.Signals() as signals,
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

    def __init__(self, config: Config, workdir: epath.Path, shard: dataset.Shard):
        self.goodput = events.Goodput()
        data, num_classes = config.data, config.model.num_classes
        self.config, self.workdir, self.shard = config, workdir, shard
        self.train_split = dataset.open_split(data, data.train_split, num_classes)
        self.test_split = dataset.open_split(data, data.test_split, num_classes)
        self.validation_split = (
            dataset.open_split(data, data.validation_split, num_classes)
            if data.validation_split
            else None
        )
        net = train_step.make_model(config.model)
        if net.param_dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ConfigError(
                "config.model.dtype='float64' needs JAX's 64-bit mode, which is off; "
                "set the environment variable JAX_ENABLE_X64=1"
            )
        if data.crop_size < net.smallest_image:
            raise ConfigError(
                f"config.data.crop_size={data.crop_size} is smaller than the net can "
                f"take, {net.smallest_image} pixels with config.model.fc6_window="
                f"{config.model.fc6_window}; raise it, or use "
                f"--config.model.fc6_window={max(1, data.crop_size // 32)}"
            )
        self.plan = Plan.of(config, len(self.train_split))
        self.abstract_state = jax.eval_shape(lambda: train_step.init_state(config))
        self.shards = train_step.make_shards(config, jax.device_count())
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
                (s.name, len(s), dataset.fingerprint(s), s.class_names)
                for s in splits
                if s is not None
            ],
            "versions": checkpoint.versions(),
            "code": distributed.code_digest(),
        }

    def start(
        self,
        checkpoints: checkpoint.Checkpoints,
        signals: distributed.Signals,
        happened: events.Events,
    ) -> None:
        """Restores or makes the state, and says what is coming."""
        self.checkpoints, self.signals, self.events = checkpoints, signals, happened
        self.saving: int | None = None  # the step whose save is not known to be done
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
        self.watchdog = distributed.Watchdog(
            seconds if self.shard.processes > 1 else None
        )
        saved = checkpoints.read_newest(
            lambda step, why: self.events.write("damaged", step=step, reason=str(why))
        )
        if saved is not None:
            starting.check_same(saved, self.config)
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
            self.state = starting.new_state(self.config)
        self.goodput.resume(self.events.past, self.step)
        self.state = self.shards.place(self.state)
        self.log = progress.Log(
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
        self._introduce(resumed=saved is not None)
        self._eval_step: Any = None

    def train(self) -> None:
        """Steps until the plan's end, evaluating and saving when due."""
        if not self.evaluated:
            self._evaluate_and_save()
        if self.step == self.plan.total_steps:
            return
        step_fn = self._compile_train_step()
        batches = dataset.train_batches(
            self.config.data,
            self.train_split,
            seed=self.config.seed,
            start_step=self.step,
            shard=self.shard,
        )
        meter = progress.Meter(
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
            self._note_finished_save()
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
        done = [r for r in progress.read_records(self.workdir) if r["split"] == "test"]
        if done and done[-1]["step"] == self.step:
            self.log.say(f"complete: {self.workdir} is at its last step, {self.step}")
            record = done[-1]
        else:
            record = self._evaluate("test", self.test_split)
            self.log.draw()
        self._wait_for_save()
        self._check_still_there()
        self.events.write("complete", **self.goodput.facts())
        self.log.say(self.goodput.line())
        self.log.say(report.result_line(record, self.workdir))
        return record

    def _compile_train_step(self) -> Any:
        config, plan = self.config, self.plan
        schedule = optimizer.make_schedule(
            config.optimizer, plan.steps_per_epoch, plan.total_steps
        )
        mapped = parallel.pmap_step(
            train_step.make_train_step(config, schedule, self.shards),
            donate_state=True,
            state_axes=self.shards.axes(self.abstract_state),
        )
        start = time.perf_counter()
        shapes = dataset.train_batch_shapes(config.data, self.shard)
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
            plateau = optimizer.update_plateau(
                self.config.optimizer, self.state.plateau, top1
            )
            self.state = self.state.replace(plateau=parallel.replicate(plateau))
        if not self.evaluated:
            self.log.draw()
        self.evaluated = True
        self._save(top1)

    def _check_still_there(self) -> None:
        """Sees that the workdir is the one that was opened: a save makes missing ones.

        Raises:
          CheckpointError: it has vanished.
        """
        if not (self.workdir / "config.json").exists():
            raise checkpoint.CheckpointError(
                f"{self.workdir} has vanished, or its config.json has; bring it back, "
                "then run again to resume, or start anew"
            )

    def _save(self, top1: float | None) -> None:
        self._check_still_there()
        data, net = self.config.data, train_step.make_model(self.config.model)
        meta = {
            "config": dataclasses.asdict(self.config),
            "variant": net.variant,
            "model": net.settings,
            "preprocessing": dataclasses.asdict(preprocess.Preprocessing.of(data)),
            "class_names": list(self.train_split.class_names),
            "train_scale": data.train_scale if data.train_view == "paper" else None,
            "evaluated": self.evaluated,
        }
        self._wait_for_save()
        productive = self.goodput.productive_seconds
        self.events.write("save_started", productive_seconds=productive)
        self.checkpoints.save(self.step, self.shards.fetch(self.state), meta, top1)
        self.saving = self.step

    def _wait_for_save(self) -> None:
        self.checkpoints.wait()
        self._note_finished_save()

    def _note_finished_save(self) -> None:
        if self.saving is not None and self.checkpoints.has_saved(self.saving):
            self.events.write("save_finished", step=self.saving)
            self.saving = None

    def _evaluate(self, name: str, split: dataset.Split) -> dict[str, Any]:
        if self._eval_step is None:
            mapped = parallel.pmap_step(
                train_step.make_eval_step(self.config, self.shards),
                donate_state=False,
                state_axes=self.shards.axes(self.abstract_state.variables),
            )
            shapes = dataset.eval_batch_shapes(self.config.data, self.shard)
            self._eval_step = parallel.compile_step(
                mapped, self.state.variables, shapes
            )

        def after_batch() -> None:
            self.watchdog.step_ended()
            if received := self.signals.poll():
                self._stop(received)

        start = time.perf_counter()
        self.events.write("evaluation_started", split=name)
        batches = dataset.eval_batches(self.config.data, split, shard=self.shard)
        result = evaluation.evaluate(
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
        if self.step not in self.checkpoints.steps():
            self._save(None)
        self._wait_for_save()
        self.events.write("stopped", signal=received.name, **self.goodput.facts())
        self.log.say(self.goodput.line())
        raise distributed.Interrupted(
            f"stopped by {received.name} at step {self.step} of "
            f"{self.plan.total_steps}, which is saved; run the same command again to "
            "resume",
            128 + received,
        )

    def _introduce(self, *, resumed: bool) -> None:
        config, plan, say = self.config, self.plan, self.log.say
        leaves = jax.tree.leaves(self.abstract_state.params)
        device = jax.devices()[0]
        say(f"{self.workdir}: {config.model.variant}, seed {config.seed}")
        say(
            f"devices: {jax.device_count()} x {device.device_kind} in "
            f"{jax.process_count()} process(es)"
        )
        say(f"parameters: {sum(math.prod(leaf.shape) for leaf in leaves):,}")
        sizes = {s.name: len(s) for s in (self.train_split, self.test_split)}
        if self.validation_split is not None:
            sizes[self.validation_split.name] = len(self.validation_split)
        say("examples: " + ", ".join(f"{name} {n:,}" for name, n in sizes.items()))
        say(
            f"steps: {plan.total_steps:,} of {config.data.batch_size} examples, "
            f"{plan.steps_per_epoch:,.1f} an epoch"
        )
        if resumed and self.step < plan.total_steps:
            say(f"resumed at step {self.step}")


def _check_batch_sizes(config: Config) -> None:
    devices = jax.device_count()
    pieces = config.optimizer.accumulation_steps
    of_what = f"{devices} device(s)"
    if pieces > 1:
        of_what += f" x {pieces} accumulation steps"
    config_lib.check_batch(
        "data.batch_size", config.data.batch_size, devices * pieces, of_what
    )
    config_lib.check_batch(
        "data.eval_batch_size",
        config.data.eval_batch_size,
        devices,
        f"{devices} device(s)",
    )
