"""When a run does what: epochs by the examples seen, the rest in steps."""

import dataclasses
import fractions
import math

from vgg_flax.config import Config


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a run does what.

    A run may go on with another batch size. So its epochs are those of the examples
    that it has seen, and a step of now is `batch_size` of them.

    Attributes:
      batch_size: examples a step, from this start on.
      steps_per_epoch: of this batch size; need not be whole.
      total_steps: the run's last step; not before `start_step`.
      asked_steps: what the config asks for, which may lie behind.
      steps_per_eval: of this batch size, from one validation to the next.
      checkpoint_every_steps: from one checkpoint to the next, validated or not.
      start_step: updates made when this start began.
      start_examples: examples seen by then.
    """

    batch_size: int
    steps_per_epoch: float
    total_steps: int
    asked_steps: int
    steps_per_eval: float
    checkpoint_every_steps: int
    start_step: int = 0
    start_examples: int = 0

    @classmethod
    def of(
        cls,
        config: Config,
        num_examples: int,
        start_step: int = 0,
        start_examples: int = 0,
    ) -> "Plan":
        """The plan of `config` for a training split of `num_examples`."""
        size = config.data.batch_size
        steps_per_epoch = num_examples / size
        if start_examples == start_step * size:  # the batch size stayed
            epochs_end = math.ceil(config.num_epochs * steps_per_epoch)
        else:  # exactly: the end is the same at every later start
            epochs = fractions.Fraction(config.num_epochs).limit_denominator(10**6)
            left = epochs * num_examples - start_examples
            epochs_end = start_step + math.ceil(left / size)
        asked_steps = config.num_steps or epochs_end
        return cls(
            size,
            steps_per_epoch,
            max(start_step, asked_steps),
            asked_steps,
            config.eval_every_epochs * steps_per_epoch,
            config.checkpoint_every_steps,
            start_step,
            start_examples,
        )

    @property
    def shift(self) -> int:
        """Steps of this batch size that the run is ahead of its step's number."""
        return round(self.start_examples / self.batch_size - self.start_step)

    def examples_at(self, step: int) -> int:
        """Examples seen after `step` updates."""
        return self.start_examples + (step - self.start_step) * self.batch_size

    def epoch_at(self, step: int) -> float:
        """How often the split was gone through after `step` updates."""
        return self.examples_at(step) / self.batch_size / self.steps_per_epoch

    def first_step_of(self, epoch: float) -> int:
        """Updates before the first batch that begins in `epoch` or later.

        In the past it is counted in batches of now, and may be below 0.
        """
        left = epoch * self.steps_per_epoch - self.start_examples / self.batch_size
        return self.start_step + math.ceil(left - 1e-6)

    def validates_at(self, step: int) -> bool:
        """Whether the validation split is due after `step` updates."""
        examples = (self.examples_at(step - 1), self.examples_at(step))
        passed = [
            math.floor(n / self.batch_size / self.steps_per_eval) for n in examples
        ]
        return step > 0 and (passed[0] != passed[1] or step == self.total_steps)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates, validated or not."""
        return self.validates_at(step) or step % self.checkpoint_every_steps == 0
