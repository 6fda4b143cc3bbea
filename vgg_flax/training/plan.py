"""When a run does what, in steps."""

import dataclasses
import math

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

    def validates_at(self, step: int) -> bool:
        """Whether the validation split is due after `step` updates."""
        passed = [math.floor(s / self.steps_per_eval) for s in (step - 1, step)]
        return step > 0 and (passed[0] != passed[1] or step == self.total_steps)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates, validated or not."""
        return self.validates_at(step) or step % self.checkpoint_every_steps == 0
