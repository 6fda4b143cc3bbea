"""A whole split through the net in training: every image once, the total checked."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax

from vgg_flax import metrics as metrics_lib
from vgg_flax.metrics import Metrics
from vgg_flax.parallel.ahead import ahead
from vgg_flax.training.objectives import CLASSIFICATION

# Batches sent and not yet read: enough to keep the devices busy, and no more memory.
_IN_FLIGHT = 3


def validate(
    eval_step: Callable[[Any, Any], dict[str, jax.Array]],
    variables: Any,
    batches: Iterable[Any],
    expected_count: int,
    metrics: Metrics = CLASSIFICATION.metrics,
    *,
    skipping: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The metrics' means over a split.

    Args:
      eval_step: the mapped `step.make_eval_step`.
      variables: replicated.
      batches: all of the split's, sharded.
      expected_count: the split's size.
      metrics: of the objective.
      skipping: whether undecodable images may be missing from the count.
      after_batch: called once a batch: progress, and a look at signals.

    Returns:
      Each metric's mean, `count`, `NAME_count` of shares, and `skipped` if any were.

    Raises:
      RuntimeError: another number of images was counted: a defect of this program.
    """
    sums: collections.Counter[str] = collections.Counter()
    sent = (eval_step(variables, batch) for batch in batches)
    for batch_sums in ahead(sent, _IN_FLIGHT):
        values = jax.device_get(batch_sums)
        sums.update({name: value.item() for name, value in values.items()})
        after_batch()
    count = sums["count"]
    if count > expected_count or (count < expected_count and not skipping) or not count:
        raise RuntimeError(f"evaluated {count} images of a split of {expected_count}")
    skipped = expected_count - count
    return {
        **metrics_lib.means(metrics, sums),
        **metrics_lib.counts(metrics, sums),
        **({"skipped": skipped} if skipped else {}),
    }
