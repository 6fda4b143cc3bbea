"""What a run trains, and on what: settings, data, plan and net; none of it changes."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import optax
from etils import epath

from vgg_flax import config as config_lib
from vgg_flax import parallel, storage
from vgg_flax.config import Config, DataConfig
from vgg_flax.data import batches, splits
from vgg_flax.data.batches import Batch, Shard, Skipped
from vgg_flax.data.splits import Split
from vgg_flax.net import Net
from vgg_flax.parallel import distributed
from vgg_flax.runs import directory
from vgg_flax.training import (
    distillation,
    objectives,
    optimizers,
    requirements,
    schedules,
)
from vgg_flax.training import state as state_lib
from vgg_flax.training import step as step_lib
from vgg_flax.training.objectives import Objective
from vgg_flax.training.plan import Plan
from vgg_flax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Job:
    """A checked config with what it describes, in every process.

    Attributes:
      config: checked.
      workdir: where the run lives.
      objective: what is minimised and told.
      optimizer: of one's own; None: the one that the config names.
      shard: which part of a batch is this process's.
      splits: "train" and, as the config has them, "test" and "validation".
      fingerprints: of each, its number of examples and a hash of what is in it.
      plan: when the run does what.
      fc_shards: how the FC kernels are cut over all devices.
      abstract_state: the state's shapes and dtypes, whole.
      teacher: the net of `config.distillation`, if it has one.
      skipped: the images that this process has left out.
    """

    config: Config
    workdir: epath.Path
    objective: Objective
    optimizer: optax.GradientTransformation | None
    shard: Shard
    splits: dict[str, Split]
    fingerprints: dict[str, tuple[int, str]]
    plan: Plan
    fc_shards: parallel.FCShards
    abstract_state: TrainState
    teacher: Net | None = None
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    @classmethod
    def prepare(
        cls,
        config: Config,
        workdir: epath.PathLike,
        objective: Objective = objectives.CLASSIFICATION,
        optimizer: optax.GradientTransformation | None = None,
    ) -> "Job":
        """Checks the settings, opens the splits, and compares the processes.

        Nothing is written, and no params are made.

        Raises:
          ConfigError: settings that are wrong, or do not fit the devices.
          DataError: a split that can't be opened, or has other classes.
        """
        config = config_lib.check(config)
        objectives.check(objective, config.objective)
        optimizers.check(optimizer, config.optimizer.name)
        storage.check_path("--workdir", workdir)
        distributed.check_devices()
        resolved = splits.resolved(config.data)
        config = config_lib.check(dataclasses.replace(config, data=resolved))
        # The same for any number of classes, which may be the data's.
        requirements.check_net(_with_classes(config, 1), jax.device_count())
        opened = _open_splits(config, objective)
        if objective.has_classes:
            config = _with_classes(config, len(opened["train"].class_names))
        requirements.check_targets(config, objective)
        job = cls(
            config,
            storage.expanded(workdir),
            objective,
            optimizer,
            Shard(jax.process_index(), jax.process_count()),
            opened,
            {k: (len(v), splits.fingerprint(v)) for k, v in opened.items()},
            Plan.of(config, len(opened["train"])),
            state_lib.make_shards(config, jax.device_count()),
            jax.eval_shape(lambda: state_lib.init_state(config, optimizer)),
            distillation.load(config, config.model.num_classes),
        )
        distributed.check_same(job.facts())
        return job

    def resumed(self, step: int, examples_seen: int) -> "Job":
        """The same from a step on, by which that many examples had been seen."""
        num_examples = len(self.splits["train"])
        plan = Plan.of(self.config, num_examples, step, examples_seen)
        return dataclasses.replace(self, plan=plan)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.shard.process == 0

    @property
    def state_bytes(self) -> int:
        """Of the whole state, as a checkpoint holds it."""
        leaves = jax.tree.leaves(self.abstract_state)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the outputs, where these are scores of classes."""
        names = self.splits["train"].class_names
        return names if self.objective.has_classes else ()

    def facts(self) -> dict[str, Any]:
        """What must be the same in all processes."""
        return {
            **{f"config.{k}": v for k, v in config_lib.flatten(self.config).items()},
            "workdir": str(self.workdir),
            "teacher": self.teacher and self.teacher.sha256,
            "data": [
                (s.name, self.fingerprints[k], s.class_names)
                for k, s in self.splits.items()
            ],
            "versions": directory.versions(),
            "code": distributed.code_digest(),
        }

    def introduction(self, step: int) -> list[str]:
        """What a run says before it goes on from `step`."""
        config, plan = self.config, self.plan
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        examples = (
            f"{name} {len(split):,} ({split.name.removeprefix(f'{config.data.name}/')})"
            for name, split in self.splits.items()
        )
        params = jax.tree.leaves(self.abstract_state.params)
        lines = [
            f"{self.workdir}: {config.model.variant}, seed {config.seed}",
            f"devices: {devices} in {self.shard.processes} process(es)",
            f"parameters: {sum(math.prod(leaf.shape) for leaf in params):,}",
            "examples: " + ", ".join(examples),
            f"steps: {plan.total_steps:,} of {config.data.batch_size} examples, "
            f"{plan.steps_per_epoch:,.1f} an epoch",
        ]
        if plan.shift:
            lines.append(
                f"epochs go by the examples seen: step {plan.start_step:,} is epoch "
                f"{plan.epoch_at(plan.start_step):.1f} of this split"
            )
        if plan.asked_steps < plan.start_step:
            lines.append(
                f"the config asks for {plan.asked_steps:,} steps, and the run is at "
                f"step {plan.start_step:,}: nothing more is trained"
            )
        later = [stage for stage in self.stages if stage[0] > step]
        if config.data.crop_size_by_epoch or config.data.train_scale_by_epoch:
            lines += [
                f"from step {max(0, first):,}, epoch {plan.epoch_at(first):.1f}, on: "
                f"training views of {data.crop_size} pixels"
                + f", S {data.train_scale}" * (data.train_view != "resized_crop")
                + ", which is never reached" * (first >= plan.total_steps)
                for first, data in [(step, self.train_data(step)), *later]
            ]
        told: dict[str, list[str]] = {}  # slices of a folder have the same to tell
        for split in self.splits.values():
            for remark in split.remarks:
                told.setdefault(remark, []).append(split.name)
        lines += [f"{', '.join(names)}: {remark}" for remark, names in told.items()]
        if config.freeze and not config.init_from and not step:
            lines.append(
                f"frozen as drawn, for there are no weights in config.init_from: "
                f"{', '.join(config.freeze)}"
            )
        if self.fc_shards.shapes:
            lines.append(f"FC kernels: {self.fc_shards.description}")
        return lines + [f"resumed at step {step}"] * (0 < step < plan.total_steps)

    @functools.cached_property
    def stages(self) -> tuple[tuple[int, DataConfig], ...]:
        """What training sees: `(updates before it begins, settings)`, in order."""
        stages = config_lib.training_stages(self.config.data)
        begun = {self.plan.first_step_of(epoch): data for epoch, data in stages}
        return tuple(begun.items())  # of two that begin with one step, the later

    def train_data(self, step: int) -> DataConfig:
        """The settings of the batch that comes after `step` updates."""
        begun = [data for first, data in self.stages if first <= step]
        return begun[-1] if begun else self.stages[0][1]

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """This process's batches from `start_step` on, without end."""
        return batches.train_batches(
            self.train_data(start_step),
            self.splits["train"],
            seed=self.config.seed,
            start_example=self.plan.examples_at(start_step),
            shard=self.shard,
            skipped=self.skipped,
            later=[
                (self.plan.examples_at(first), data)
                for first, data in self.stages
                if first > start_step
            ],
        )

    def eval_batches(self, name: str) -> Iterator[Batch]:
        """This process's batches of a whole split, in order."""
        split = self.splits[name]
        return batches.eval_batches(
            self.config.data, split, shard=self.shard, skipped=self.skipped
        )

    def compile_train_step(self, state: TrainState, step: int) -> Any:
        """The mapped training step after `step` updates: see `parallel.compile_step`.

        Args:
          state: placed.
          step: what the size of the batch's images follows from.
        """
        plan = self.plan
        schedule = schedules.make_schedule(
            self.config.optimizer, plan.steps_per_epoch, plan.total_steps, plan.shift
        )
        axes = self.fc_shards.axes(self.abstract_state)
        shapes = self._shapes(self.train_data(step), train=True)
        make = functools.partial(
            step_lib.make_train_step,
            self.config,
            schedule,
            self.objective,
            self.fc_shards,
            self.optimizer,
        )
        if self.teacher is None:
            mapped = parallel.pmap_step(make(), donate_state=True, state_axes=axes)
            return parallel.compile_step(mapped, state, shapes)
        return distillation.compile_step(make, self.teacher, state, axes, shapes)

    def compile_eval_step(self, variables: Any) -> Any:
        """The mapped validation step for a placed state's variables."""
        mapped = parallel.pmap_step(
            step_lib.make_eval_step(self.config, self.objective, self.fc_shards),
            donate_state=False,
            state_axes=self.fc_shards.axes(self.abstract_state.variables),
        )
        shapes = self._shapes(self.config.data, train=False)
        return parallel.compile_step(mapped, variables, shapes)

    def _shapes(self, data: DataConfig, *, train: bool) -> dict[str, Any]:
        devices = jax.local_device_count()
        size = data.batch_size if train else data.eval_batch_size
        lead = (devices, self.shard.local_size(size) // devices)
        return batches.batch_shapes(data, lead, train=train)


def _with_classes(config: Config, count: int) -> Config:
    """`config`, with so many classes if it leaves the number to the data."""
    if config.model.num_classes:
        return config
    net = dataclasses.replace(config.model, num_classes=count)
    return dataclasses.replace(config, model=net)


def _open_splits(config: Config, objective: Objective) -> dict[str, Split]:
    """The config's splits; their classes are the net's outputs, if those are scores."""
    data = config.data
    wanted = {"train": data.train_split}
    for name in ("test", "validation"):
        if split := getattr(data, f"{name}_split"):
            wanted[name] = split
    classes = config.model.num_classes
    if objective.has_classes:
        opened: dict[str, Split] = {}
        for name, split in wanted.items():  # the first, of training, says which
            names = opened["train"].class_names if opened else ()
            opened[name] = splits.open_split(data, split, classes, names)
        return opened
    return {
        k: splits.open_any_split(data.name, data.data_dir, v, classes)
        for k, v in wanted.items()
    }
