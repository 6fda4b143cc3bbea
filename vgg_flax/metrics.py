"""Cross entropy and top-k as sums under a mask, so that no mean of means is taken."""

import jax
import jax.numpy as jnp

TOP_K = {"top1": 1, "top5": 5}


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


def sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is True.

    Args:
      logits: `[batch, classes]`.
      labels: `[batch]`, integers; those of masked examples may be anything.
      mask: `[batch]`, bool.

    Returns:
      `loss` (float), `top1`, `top5` and `count` (int32), all scalars.
    """
    # Masked before, not after: else a NaN there would reach the gradient.
    labels, logits = jnp.where(mask, labels, 0), jnp.where(mask[:, None], logits, 0)
    loss = jnp.where(mask, cross_entropy(logits, labels), 0)
    hits = {name: mask & is_top_k(logits, labels, k) for name, k in TOP_K.items()}
    return {
        "loss": loss.sum(),
        **{name: hit.sum(dtype=jnp.int32) for name, hit in hits.items()},
        "count": mask.sum(dtype=jnp.int32),
    }
