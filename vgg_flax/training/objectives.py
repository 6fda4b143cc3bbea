"""What is trained: an objective, which says what is minimised and what is told."""

import dataclasses
import os
import runpy
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vgg_flax import metrics as metrics_lib
from vgg_flax.errors import ConfigError
from vgg_flax.metrics import TOP_K, Metric

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A function of the net's outputs, and the metrics that it sums.

    Called with `(outputs, batch)` it gives the sums. A recipe names its own by
    `get_objective()`, and `config.objective` holds its name.

    Attributes:
      name: as `config.objective` and checkpoints have it.
      sums: `(outputs, batch) -> sums` over the examples whose `mask` is True, a pure
        function for one replica: `outputs` `[batch, num_classes]` in the params'
        dtype; `batch` what `data.batches` yields, uint8 `image` after augmentation
        among it. The sums are scalars: `loss`, whose mean is minimised, `count`, the
        number of examples, and one for each other of `metrics`.
      metrics: `loss` first, in the order in which they are told; one of them decides.
      has_classes: whether the outputs are scores of the data's classes, so that
        predictions and evaluations make sense.
    """

    name: str
    sums: Callable[[jax.Array, Batch], Sums]
    metrics: tuple[Metric, ...]
    has_classes: bool = False

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        deciding = [metric.name for metric in self.metrics if metric.decides]
        if names[:1] != ["loss"] or len(set(names)) < len(names) or len(deciding) != 1:
            raise ConfigError(
                f"objective {self.name!r} has metrics {names}, of which {deciding} "
                "decide; expected different names, 'loss' first, and one that decides"
            )

    def __call__(self, outputs: jax.Array, batch: Batch) -> Sums:
        sums = self.sums(outputs, batch)
        expected = {metric.name for metric in self.metrics} | {"count"}
        if set(sums) != expected:
            raise ConfigError(
                f"objective {self.name!r} sums {sorted(sums)}; expected "
                f"{sorted(expected)}, its metrics and the count of examples"
            )
        return sums


def cross_entropy(outputs: jax.Array, batch: Batch) -> Sums:
    """The paper's multinomial logistic regression (section 3.1), and top-k hits.

    With `targets` in the batch, of those instead of the labels.
    """
    return metrics_lib.sums(
        outputs, batch["label"], batch["mask"], batch.get("targets")
    )


def _hits(name: str, k: int, *, decides: bool) -> Metric:
    return Metric(
        name,
        ".2%",
        title=f"top-{k} error",
        is_share=True,
        larger_is_better=True,
        decides=decides,
    )


CLASSIFICATION = Objective(
    "classification",
    cross_entropy,
    (
        Metric("loss", title="cross entropy (nats)"),
        *(_hits(name, k, decides=k == 1) for name, k in TOP_K.items()),
    ),
    has_classes=True,
)


def of_recipe(path: str | os.PathLike[str]) -> Any:
    """What the recipe's `get_objective()` returns; without one, `CLASSIFICATION`."""
    get_objective = runpy.run_path(os.fspath(path)).get("get_objective")
    return get_objective() if get_objective else CLASSIFICATION


def check(objective: Any, name: str) -> None:
    """Sees that a run is given the objective that its config names.

    Raises:
      ConfigError: it is another one, or none.
    """
    if not isinstance(objective, Objective):
        raise ConfigError(
            f"the objective is {objective!r}; expected an objectives.Objective, which "
            "a recipe returns from get_objective()"
        )
    if objective.name != name:
        raise ConfigError(
            f"config.objective={name!r}, and the objective that is given is "
            f"{objective.name!r}; name that in the config, beside get_objective() in "
            "the recipe"
        )
