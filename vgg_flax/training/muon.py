"""Muon: a kernel's momentum, orthogonalised, whole or cut over the replicas."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vgg_flax import parallel

# Of x -> a x + b x^3 + c x^5, five times of which bring singular values near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class MuonState(struct.PyTreeNode):
    """What is kept from step to step."""

    count: jax.Array  # int32, updates made
    mu: Any  # as the params, mean of the gradients


def scale_by_muon(
    momentum: float, nesterov: bool, epsilon: float, shards: parallel.FCShards
) -> optax.GradientTransformation:
    """Turns kernels' gradients into orthogonal matrices, as large as AdamW's steps.

    A kernel `[..., inputs, outputs]` is the matrix of its outputs' columns. Its updates
    are of root mean square 0.2, which AdamW's are near, so that one learning rate fits
    both (Liu et al. 2025, equation 4); `optax.contrib.muon` with `consistent_rms=0.2`.

    A cut kernel is orthogonalised where it lies: X (X^T X)^k has rows of its own on
    each replica, and X^T X is the sum of theirs.

    Args:
      momentum: of the gradients' mean, whose start at 0 is corrected for.
      nesterov: whether the next gradient is looked ahead for.
      epsilon: added to a kernel's norm.
      shards: how FC kernels are cut.

    References:
      Jordan et al. 2024, https://kellerjordan.github.io/posts/muon
      Liu et al. 2025, Muon is scalable for LLM training, arXiv:2502.16982
    """

    def init(params: Any) -> Any:
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def blend(old: jax.Array, new: jax.Array) -> jax.Array:
        return momentum * old + (1 - momentum) * new

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = state.count + 1
        mu = jax.tree.map(blend, state.mu, updates)
        mean = _corrected(mu, momentum, count + nesterov)
        if nesterov:
            mean = jax.tree.map(blend, mean, _corrected(updates, momentum, count))
        # [..., inputs, outputs] -> [inputs, outputs]
        matrices = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), mean)
        orthogonal = orthogonalize(matrices, epsilon, shards)

        def sized(path: Any, x: jax.Array, g: jax.Array) -> jax.Array:
            *inputs, outputs = shards.whole_shape(path, g)
            size = 0.2 * math.sqrt(max(math.prod(inputs), outputs))
            return (size * x).reshape(g.shape)

        directions = jax.tree_util.tree_map_with_path(sized, orthogonal, updates)
        return directions, MuonState(count, mu)

    return optax.GradientTransformation(init, update)


def orthogonalize(matrices: Any, epsilon: float, shards: parallel.FCShards) -> Any:
    """U V^T, roughly, of matrices U S V^T, by Newton's and Schulz' iteration.

    Args:
      matrices: a pytree of `[inputs, outputs]`, of cut ones a replica's rows.
      epsilon: added to their norms.
      shards: how they are cut.
    """
    a, b, c = _COEFFICIENTS

    def is_left(path: Any, x: jax.Array) -> bool:
        """Whether X X^T is the smaller product, and of all rows."""
        return x.shape[0] < x.shape[1] and not shards.is_cut(path)

    def normed(x: jax.Array, square: jax.Array) -> jax.Array:
        return x / (jnp.sqrt(square) + epsilon)

    def iterate(x: jax.Array, gram: jax.Array, left: bool) -> jax.Array:
        polynomial = b * gram + c * gram @ gram
        return a * x + (polynomial @ x if left else x @ polynomial)

    lefts = jax.tree_util.tree_map_with_path(is_left, matrices)
    squares = jax.tree.map(lambda x: jnp.sum(jnp.square(x)), matrices)
    matrices = jax.tree.map(normed, matrices, shards.add_rows(squares))
    for _ in range(_ITERATIONS):
        grams = jax.tree.map(
            lambda x, left: x @ x.T if left else x.T @ x, matrices, lefts
        )
        matrices = jax.tree.map(iterate, matrices, shards.add_rows(grams), lefts)
    return matrices


def _corrected(mean: Any, momentum: float, count: jax.Array) -> Any:
    """A mean that began at 0, `count` updates ago, as if it had not."""
    return jax.tree.map(lambda x: x / (1 - momentum ** count.astype(x.dtype)), mean)
