"""Stages computed twice, some images at a time, to save memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# How many images go through a stage at a time: enough to fill a matrix unit with, and
# little memory even where 64 channels take the room of a TPU's 128 lanes.
IMAGES = 16


def rematerialize(
    run: Callable[..., Any], images: int | None = IMAGES
) -> Callable[..., Any]:
    """`run(params, x)`, whose derivative keeps x alone.

    Given `images`, it goes through x so many at a time, or the next smaller number that
    divides the batch, forwards and backwards: the activations of no more are there.
    With None all go at once, as BatchNorm needs them.
    """
    run = jax.checkpoint(run)
    if images is None:
        return run

    def in_turn(params: Any, x: jax.Array) -> Any:
        each = max(n for n in range(1, images + 1) if len(x) % n == 0)
        chunks = x.reshape(-1, each, *x.shape[1:])
        y, update = jax.lax.map(functools.partial(run, params), chunks)
        return y.reshape(len(x), *y.shape[2:]), update

    return in_turn
