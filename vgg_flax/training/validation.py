"""A whole split through the net: every image once, integers counted, total checked."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax

# Batches sent and not yet read: enough to keep the devices busy, and no more memory.
_IN_FLIGHT = 4


def evaluate(
    eval_step: Callable[[Any, Any], dict[str, jax.Array]],
    variables: Any,
    batches: Iterable[Any],
    expected_count: int,
    *,
    skipping: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Mean loss and accuracies over a split.

    Args:
      eval_step: the mapped `train_step.make_eval_step`.
      variables: replicated.
      batches: all of the split's, sharded.
      expected_count: the split's size.
      skipping: whether undecodable images may be missing from the count.
      after_batch: called once a batch: progress, and a look at signals.

    Returns:
      `loss`, `top1`, `top5` (fractions), `count`, `top1_count`, `top5_count`, and
      `skipped` if any were.

    Raises:
      RuntimeError: another number of images was counted: a defect of this program.
    """
    sums: collections.Counter[str] = collections.Counter()
    pending: collections.deque[dict[str, jax.Array]] = collections.deque()

    def read_oldest() -> None:
        for name, value in pending.popleft().items():
            sums[name] += value.item()

    for batch in batches:
        pending.append(eval_step(variables, batch))
        if len(pending) >= _IN_FLIGHT:
            read_oldest()
        after_batch()
    while pending:
        read_oldest()
    count = sums["count"]
    if count > expected_count or (count < expected_count and not skipping) or not count:
        raise RuntimeError(f"evaluated {count} images of a split of {expected_count}")
    skipped = expected_count - count
    return {
        "loss": sums["loss"] / count,
        "top1": sums["top1"] / count,
        "top5": sums["top5"] / count,
        "count": count,
        "top1_count": sums["top1"],
        "top5_count": sums["top5"],
        **({"skipped": skipped} if skipped else {}),
    }
