"""Metrics: what is told of a step or a split, declared once; sums under a mask."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

TOP_K = {"top1": 1, "top5": 5}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A mean over examples: its name, how people see it, what it decides.

    Attributes:
      name: of its sum, and of the mean in records.
      format: of the mean in lines: ".4f", ".2%".
      title: of its axis in curves.
      is_share: whether the sum counts examples: the records of whole splits have the
        count too, as NAME_count, and curves show what is missing to 100%.
      larger_is_better: else smaller is.
      decides: whether it tells the best checkpoint, and the plateau; one of an
        objective's metrics does.
    """

    name: str
    format: str = ".4f"
    title: str = ""
    is_share: bool = False
    larger_is_better: bool = False
    decides: bool = False

    def text(self, record: Mapping[str, Any]) -> str:
        """Such as "top1 97.78%"."""
        return f"{self.name} {record[self.name]:{self.format}}"

    def score(self, value: float) -> tuple[str, float]:
        """A name and a number, of which the larger is the better."""
        if self.larger_is_better:
            return self.name, value
        return f"negative_{self.name}", -value


Metrics = Sequence[Metric]


def deciding(metrics: Metrics) -> Metric:
    """The metric that tells which checkpoint is the best."""
    (metric,) = (metric for metric in metrics if metric.decides)
    return metric


def means(metrics: Metrics, sums: Mapping[str, Any]) -> dict[str, float]:
    """The mean of each metric over `sums["count"]` examples."""
    count = max(1, sums["count"])
    return {metric.name: sums[metric.name] / count for metric in metrics}


def counts(metrics: Metrics, sums: Mapping[str, Any]) -> dict[str, int]:
    """`count`, and `NAME_count` of the metrics that count examples."""
    shares = {f"{m.name}_count": sums[m.name] for m in metrics if m.is_share}
    return {"count": sums["count"], **shares}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Negative log likelihood of each example, in nats.

    Args:
      logits: `[batch, classes]`.
      labels: `[batch]`, integers in `[0, classes)`.

    Returns:
      `[batch]`, of the logits' dtype.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]


def is_top_k(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether each label is among the k largest logits; `[batch]`, bool.

    Of equal logits the lower class counts as the larger, as in `jax.lax.top_k`; a
    net of fewer than k classes always hits.
    """
    _, best = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    return (best == labels[:, None]).any(axis=1)


def sums(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    targets: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is True.

    Args:
      logits: `[batch, classes]`.
      labels: `[batch]`, integers; those of masked examples may be anything.
      mask: `[batch]`, bool.
      targets: `[batch, classes]`, what negative log probabilities are weighted with in
        the loss; None: that of the label with 1.

    Returns:
      `loss` (float), `top1`, `top5` and `count` (int32), all scalars.
    """
    # Masked before, not after: else a NaN there would reach the gradient.
    labels, logits = jnp.where(mask, labels, 0), jnp.where(mask[:, None], logits, 0)
    if targets is None:
        loss = cross_entropy(logits, labels)
    else:
        loss = -(targets * jax.nn.log_softmax(logits)).sum(axis=-1)
    loss = jnp.where(mask, loss, 0)
    hits = {name: mask & is_top_k(logits, labels, k) for name, k in TOP_K.items()}
    return {
        "loss": loss.sum(),
        **{name: hit.sum(dtype=jnp.int32) for name, hit in hits.items()},
        "count": mask.sum(dtype=jnp.int32),
    }
