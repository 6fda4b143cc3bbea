"""FC kernels that travel under the convolutions, as part of a forward pass.

Forwards, each cut kernel is gathered under a stage of its own. Backwards its gradient,
which is ready first, is reduced over the replicas under the stages that are left. The
forward pass says the latter by tokens: placeholders that go through four functions
whose forward pass does nothing and whose derivative is a step of the exchange.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vgg_flax import parallel

# Where cut FC kernels travel. A TPU gathers one at a time beside the computation, so
# each has stages of its own; fc6 has the longest, and is kept for the shortest time.
_GATHERED_UNDER = {1: "fc8", 2: "fc7", 3: "fc6"}
# The stages whose backward pass hides the rounds of `FCShards.halve`, and how many of
# these: the first round moves half of all bytes, the second a quarter, ...
_REDUCED_UNDER = ((5, 1), (3, 1), (2, 2), (1, 99))


class Exchange:
    """The travels of one forward pass; nothing, where no kernel is cut.

    Call `begin` and `end` around each stage, and `arrive` before the head.
    """

    def __init__(self, shards: parallel.FCShards, params: Any, totals: Any):
        """`params` are a replica's own, `totals` as in `forward.make_forward`."""
        own = {layer: params[layer]["kernel"] for layer in shards.shapes}
        # What travels forwards, and, by the tokens, the gradients that come back.
        self._rows = jax.lax.stop_gradient(shards.rows(params))
        if totals:
            own = _add(own, {layer: totals[layer]["kernel"] for layer in own})
        self._tokens = {k: jnp.split(x[None], 2, axis=-1) for k, x in own.items()}
        self._kernels: dict[str, jax.Array] = {}
        self._shards = shards
        left, self._rounds = list(range(shards.rounds)), {}
        for stage, count in _REDUCED_UNDER:
            self._rounds[stage] = [left.pop(0) for _ in range(min(count, len(left)))]

    def begin(self, stage: int, x: jax.Array) -> jax.Array:
        """Before a stage: sends a kernel on its way, keeps the rounds in order."""
        layer = _GATHERED_UNDER.get(stage)
        if layer in self._rows:
            x, rows, self._kernels = jax.lax.optimization_barrier(
                (x, self._rows[layer], self._kernels)
            )
            self._kernels[layer] = self._shards.gather(layer, rows)
        if self._rows and stage > 1:
            x, self._tokens = _hold(x, self._tokens)
        return x

    def end(self, stage: int) -> None:
        """After a stage: the rounds of the reduction that its derivative hides."""
        for number in reversed(self._rounds.get(stage, [])):
            self._tokens = _widen(self._shards, number)(self._tokens)

    def arrive(self, x: jax.Array, head: Any) -> tuple[jax.Array, Any]:
        """Before the head: its params with whole kernels."""
        if not self._rows:
            return x, head
        x, self._tokens = _hold(x, self._tokens)
        whole = jax.lax.stop_gradient(self._kernels)
        kernels = _adopt(self._shards)(whole, self._tokens)
        return x, parallel.replace_kernels(head, kernels)

    def without_kernels(self, tree: Any) -> Any:
        """A tree of the head's leaves without the cut kernels."""
        return {
            layer: {
                name: leaf
                for name, leaf in leaves.items()
                if layer not in self._rows or name != "kernel"
            }
            for layer, leaves in tree.items()
        }


@jax.custom_vjp
def _hold(x: jax.Array, tokens: Any) -> tuple[jax.Array, Any]:
    """Forward: nothing. Backward: g of x waits for that of the tokens."""
    return x, tokens


_hold.defvjp(
    lambda x, tokens: ((x, tokens), None),
    lambda _, gradients: jax.lax.optimization_barrier(gradients),
)


@jax.custom_vjp
def _add(own: Any, totals: Any) -> Any:
    """Forward: nothing. Backward: adds `totals` to the gradient of `own`."""
    return own


_add.defvjp(
    lambda own, totals: (own, totals),
    lambda totals, g: (
        jax.tree.map(jnp.add, totals, g),
        jax.tree.map(jnp.zeros_like, totals),
    ),
)


def _widen(shards: parallel.FCShards, number: int) -> Callable[[Any], Any]:
    """Forward: placeholders of more rows. Backward: round `number` of the reduction."""

    @jax.custom_vjp
    def widened(tokens: Any) -> Any:
        growth = shards.growth
        return {
            layer: [jnp.zeros((growth * len(x), *x.shape[1:]), x.dtype) for x in halves]
            for layer, halves in tokens.items()
        }

    widened.defvjp(
        lambda tokens: (widened(tokens), None),
        lambda _, gradients: (shards.halve(number, gradients),),
    )
    return widened


def _adopt(shards: parallel.FCShards) -> Callable[[Any, Any], Any]:
    """Forward: the whole kernels. Backward: their gradients go to the tokens, cut."""

    @jax.custom_vjp
    def adopted(kernels: Any, tokens: Any) -> Any:
        return kernels

    def backward(_: None, gradients: Any) -> tuple[Any, Any]:
        cut = shards.cut({layer: {"kernel": g} for layer, g in gradients.items()})
        return jax.tree.map(jnp.zeros_like, gradients), cut

    adopted.defvjp(lambda kernels, tokens: (kernels, None), backward)
    return adopted
