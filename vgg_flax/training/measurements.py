"""A run's evaluations: of its params and of their average, as records."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from vgg_flax import metrics as metrics_lib
from vgg_flax import parallel
from vgg_flax.parallel import distributed
from vgg_flax.runs import log
from vgg_flax.runs.events import Events
from vgg_flax.runs.log import Log
from vgg_flax.training import validation
from vgg_flax.training.job import Job


def name_of(split: str, *, ema: bool) -> str:
    """Of a split's records: those of the average stand beside."""
    return split + log.AVERAGED * ema


@dataclasses.dataclass
class Measurements:
    """Measures, logs, and says whether it still gets better.

    Attributes:
      job: whose splits.
      log: that is told.
      events: likewise.
      after_batch: called once a batch: progress, and a look at signals.
    """

    job: Job
    log: Log
    events: Events
    after_batch: Callable[[], None]
    _compiled: Any = dataclasses.field(default=None, init=False)  # the step, once made

    def __post_init__(self) -> None:
        """Sees that all processes know the same validations, which may end the run.

        Raises:
          ConfigError: they do not: the workdir is not the same for all.
        """
        if self.job.config.early_stopping_patience:
            distributed.check_same({"validations so far": self._scores()})

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Whether of the average, of each thing that is evaluated; the last decides."""
        return (False, True) if self.job.config.averaging.decay else (False,)

    def measure(
        self, split: str, variables: Any, step: int, *, ema: bool
    ) -> dict[str, Any]:
        """The record of a whole split, which is logged.

        Args:
          split: its name.
          variables: placed.
          step: that they are of.
          ema: whether they are the average.
        """
        job, name = self.job, name_of(split, ema=ema)
        start = time.perf_counter()
        self.events.write("evaluation_started", split=name)
        result = validation.validate(
            self._eval_step(variables),
            variables,
            parallel.prefetch(job.eval_batches(split)),
            len(job.splits[split]),
            job.objective.metrics,
            skipping=job.config.data.on_bad_image == "skip",
            after_batch=self.after_batch,
        )
        seconds = time.perf_counter() - start
        deciding = self._deciding.name
        self.events.write(
            "evaluation_finished",
            split=name,
            seconds=round(seconds, 3),
            **{deciding: result[deciding]},
        )
        record = {
            "step": step,
            "epoch": job.plan.epoch_at(step),
            "split": name,
            **result,
            "images_per_second": round(result["count"] / seconds, 1),
        }
        self.log.record(record)
        return record

    def missing(self, split: str, step: int) -> list[bool]:
        """The kinds of which there is no record of a split at a step."""
        there = self._records(split, step)
        return [ema for ema in self.kinds if name_of(split, ema=ema) not in there]

    def decisive(self, split: str, step: int) -> dict[str, Any]:
        """The record that decides, of a split at a step where it is there."""
        return self._records(split, step)[name_of(split, ema=self.kinds[-1])]

    def score(self, record: dict[str, Any]) -> tuple[str, float]:
        """A name and a number of what decides, of which the larger is the better."""
        return self._deciding.score(record[self._deciding.name])

    def is_stale(self) -> bool:
        """Whether validations no longer get better, so that the run is to end."""
        patience = self.job.config.early_stopping_patience
        if not patience:
            return False
        scores = self._scores()
        stale = len(scores) - 1 - scores.index(max(scores)) if scores else 0
        if stale < patience:
            return False
        self.log.say(
            f"{stale} validation(s) without a better {self._deciding.name}: the "
            f"run ends (early_stopping_patience={patience})"
        )
        return True

    def _scores(self) -> list[float]:
        """Of the validations so far, of what decides."""
        name = name_of("validation", ema=self.kinds[-1])
        records = [r for r in self.log.records if r["split"] == name]
        return [self.score(record)[1] for record in records]

    def _records(self, split: str, step: int) -> dict[str, dict[str, Any]]:
        names = [name_of(split, ema=ema) for ema in (False, True)]
        found = [r for r in self.log.records if r["step"] == step]
        return {r["split"]: r for r in found if r["split"] in names}

    @property
    def _deciding(self) -> metrics_lib.Metric:
        return metrics_lib.deciding(self.job.objective.metrics)

    def _eval_step(self, variables: Any) -> Any:
        if self._compiled is None:
            self._compiled = self.job.compile_eval_step(variables)
        return self._compiled
