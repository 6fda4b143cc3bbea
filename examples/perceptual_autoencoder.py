"""LPIPS in another model's training step: an autoencoder of photos, with and without.

    python examples/perceptual_autoencoder.py photos/ out.png

Two autoencoders with 12 numbers for each 8 x 8 pixels: one is trained on squared
differences alone, one on LPIPS too. Rows of the picture: crops, and what comes of them.
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image

import vgg_flax
from vgg_flax import perceptual
from vgg_flax.inference.prediction import find_images
from vgg_flax.net import Net

SIDE = 48


class Autoencoder(nn.Module):
    """`[batch, SIDE, SIDE, 3]` in [-1, 1] and back."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (32, 64, 12):
            x = nn.Conv(width, (4, 4), (2, 2))(x)
            x = nn.gelu(x) if width != 12 else x
        for width in (64, 32, 3):
            x = nn.ConvTranspose(width, (4, 4), (2, 2))(x)
            x = nn.gelu(x) if width != 3 else x
        return nn.tanh(x)


def train(
    net: Net, crops: np.ndarray, steps: int, weight: float, batch: int = 16
) -> tuple[np.ndarray, float]:
    """What becomes of the first crops, and how far LPIPS says they are."""
    model, optimizer = Autoencoder(), optax.adam(2e-3)
    params = jax.jit(model.init)(jax.random.key(0), crops[:1])
    random = np.random.default_rng(0)

    def loss(params: Any, images: jax.Array) -> jax.Array:
        made = model.apply(params, images)
        total = jnp.square(made - images).mean()
        if weight:  # the net is not trained: no gradient is taken by its params
            total += (
                weight * perceptual.lpips(net, made, images, any_pixels=True).mean()
            )
        return total

    @jax.jit
    def step(params: Any, state: optax.OptState, images: jax.Array) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params, images), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        images = jnp.asarray(crops[random.integers(0, len(crops), batch)])
        params, state = step(params, state, images)
    made: Any = model.apply(params, crops[:8])
    far = perceptual.lpips(net, made, jnp.asarray(crops[:8]), any_pixels=True)
    return np.asarray(made), float(far.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos")
    parser.add_argument("output")
    parser.add_argument("--weights", default="vgg16")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    net = vgg_flax.load(options.weights, until="relu5_3")
    random, crops = np.random.default_rng(0), []
    for path in find_images([options.photos])[0]:
        photo = net.preprocessing.rescale(path, 2 * SIDE)
        for _ in range(8):
            top, left = (random.integers(0, n - SIDE + 1) for n in photo.shape[:2])
            crops.append(photo[top : top + SIDE, left : left + SIDE])
    data = np.float32(random.permutation(np.stack(crops))) / 127.5 - 1
    rows = [data[:8]]
    for name, weight in (("squares", 0.0), ("squares and LPIPS", 0.5)):
        made, far = train(net, data, options.steps, weight)
        print(f"{name}: LPIPS {far:.3f}")
        rows.append(made)
    picture = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    pixels = ((picture + 1) * 127.5).round().astype(np.uint8)
    PIL.Image.fromarray(pixels).save(options.output)


if __name__ == "__main__":
    main()
