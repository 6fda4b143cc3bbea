"""When a run does what, in steps."""

import dataclasses
import math

import jax
from etils import epath

from vgg_flax.config import Config


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a run does what, in steps."""

    steps_per_epoch: float
    total_steps: int
    steps_per_eval: float
    checkpoint_every_steps: int

    @classmethod
    def of(cls, config: Config, num_examples: int) -> "Plan":
        """The plan of `config` for a training split of `num_examples`."""
        steps_per_epoch = num_examples / config.data.batch_size
        total = config.num_steps or math.ceil(config.num_epochs * steps_per_epoch)
        return cls(
            steps_per_epoch,
            total,
            config.eval_every_epochs * steps_per_epoch,
            config.checkpoint_every_steps,
        )

    def evaluates_at(self, step: int) -> bool:
        """Whether the validation split is due after `step` updates."""
        passed = [math.floor(s / self.steps_per_eval) for s in (step - 1, step)]
        return step > 0 and (passed[0] != passed[1] or step == self.total_steps)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates, evaluated or not."""
        return self.evaluates_at(step) or step % self.checkpoint_every_steps == 0


pass


def introduction(
    config: Config,
    workdir: epath.Path,
    plan: Plan,
    *,
    parameters: int,
    examples: dict[str, int],
    step: int,
) -> list[str]:
    """What a run says before it steps.

    Args:
      config: the run's.
      workdir: the run's.
      plan: the run's.
      parameters: how many numbers the net has.
      examples: how many each split has.
      step: where the run stands; 0: at its start.
    """
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    lines = [
        f"{workdir}: {config.model.variant}, seed {config.seed}",
        f"devices: {devices} in {jax.process_count()} process(es)",
        f"parameters: {parameters:,}",
        "examples: " + ", ".join(f"{name} {n:,}" for name, n in examples.items()),
        f"steps: {plan.total_steps:,} of {config.data.batch_size} examples, "
        f"{plan.steps_per_epoch:,.1f} an epoch",
    ]
    return lines + [f"resumed at step {step}"] * (0 < step < plan.total_steps)
