"""This package's LPIPS as a loss: distances of pairs, and the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import serve, work
from vgg_flax import loading, perceptual


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`."""
    net = loading.load(spec["weights"], include_top=False)
    images = jnp.asarray(work.batch(spec)[0] / np.float32(127.5) - 1)
    others = jnp.roll(images, 1, axis=0)

    @jax.jit
    def step(net: Any, images: Any, others: Any) -> Any:
        def total(images: Any) -> Any:
            distances = perceptual.lpips(net, images, others)
            return distances.sum(), distances

        return jax.grad(total, has_aux=True)(images)

    gradient, distances = step(net, images, others)
    slopes = (gradient * (others - images)).sum((1, 2, 3))
    facts = work.kept(spec, "ours", distances=distances, slopes=slopes)

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            jax.block_until_ready(step(net, images, others))

    return run, facts


if __name__ == "__main__":
    serve.serve(prepare)
