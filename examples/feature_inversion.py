"""What a layer remembers of a photo (Mahendran and Vedaldi 2015).

    python examples/feature_inversion.py photo.jpg out.png

From noise, a picture whose features are the photo's; one for each layer, side by side.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image

import vgg_flax
from vgg_flax import perceptual
from vgg_flax.net import Net


def invert(
    net: Net, photo: np.ndarray, layer: str, steps: int, smoothness: float = 1e-3
) -> tuple[np.ndarray, float]:
    """A picture with the features of `photo`, uint8 `[h, w, 3]`, and how far they are.

    The distance is the squared one over the target's own (equation 4), to which the
    total variation is added (beta 2).
    """
    target = net.features(photo[None], layer)[layer]
    size = jnp.square(target).sum()
    low, high = (net.preprocessing.normalize(jnp.full((1, 1, 3), v)) for v in (0, 255))

    def distance(x: jax.Array) -> jax.Array:
        return jnp.square(net.features(x, layer)[layer] - target).sum() / size

    def loss(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        far = distance(low + jax.nn.sigmoid(pixels) * (high - low))
        rough = perceptual.total_variation(jax.nn.sigmoid(pixels)).sum()
        return far + smoothness * rough / photo.size * 100, far

    optimizer = optax.adam(0.1)

    @jax.jit
    def step(pixels: jax.Array, state: optax.OptState) -> tuple[jax.Array, ...]:
        gradient, far = jax.grad(loss, has_aux=True)(pixels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(pixels, updates), state, far

    pixels = 0.1 * jax.random.normal(jax.random.key(0), (1, *photo.shape))
    state, far = optimizer.init(pixels), jnp.inf
    for _ in range(steps):
        pixels, state, far = step(pixels, state)
    picture = np.asarray(jax.nn.sigmoid(pixels[0]) * 255)
    return picture.round().astype(np.uint8), float(far)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo")
    parser.add_argument("output")
    parser.add_argument("--weights", default="vgg16")
    parser.add_argument("--layers", default="relu1_2,relu2_2,relu3_3,relu4_3,relu5_3")
    parser.add_argument("--size", type=int, default=160, help="smaller side, in pixels")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    net = vgg_flax.load(options.weights, until="relu5_3")
    photo = net.preprocessing.rescale(options.photo, options.size)
    pictures = [photo]
    for layer in options.layers.split(","):
        picture, far = invert(net, photo, layer, options.steps)
        print(f"{layer}: {far:.2%} of the features' own size away")
        pictures.append(picture)
    PIL.Image.fromarray(np.concatenate(pictures, axis=1)).save(options.output)


if __name__ == "__main__":
    main()
