"""A photo in the style of another picture (Gatys, Ecker and Bethge 2016, section 2.3).

    python examples/style_transfer.py photo.jpg painting.jpg out.png

Writes a strip: the photo, pictures on the way, the painting.
"""

import argparse
from typing import Any

import jax
import numpy as np
import optax
import PIL.Image

import vgg_flax
from vgg_flax import perceptual
from vgg_flax.net import Net

LAYERS = (*perceptual.STYLE, *perceptual.CONTENT)


def transfer(
    net: Net,
    content: np.ndarray,
    style: np.ndarray,
    steps: int,
    style_weight: float = 1e3,
) -> tuple[list[np.ndarray], list[float]]:
    """Pictures on the way from `content`, uint8 `[h, w, 3]`, and each step's loss."""
    wanted = net.features(content[None], LAYERS)
    painting = net.features(style[None], tuple(perceptual.STYLE))
    grams = {name: perceptual.gram_matrix(x) for name, x in painting.items()}
    rate = 0.02 / np.mean(net.preprocessing.std)  # of a pixel in [0, 1], a step
    optimizer = optax.adam(rate)

    def loss(x: jax.Array) -> jax.Array:
        found = net.features(x, LAYERS)
        near = perceptual.content_loss(found, wanted)
        like = perceptual.style_loss(found, grams)
        smooth = perceptual.total_variation(x) / x.size
        return (near + style_weight * like + 1e-2 * smooth).sum()

    @jax.jit
    def step(x: jax.Array, state: optax.OptState) -> Any:
        value, gradient = jax.value_and_grad(loss)(x)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(x, updates), state, value

    x = net.preprocessing.normalize(content[None])
    state, pictures, losses = optimizer.init(x), [], []
    kept = {0, steps // 20, steps // 5, steps - 1}
    for i in range(steps):
        x, state, value = step(x, state)
        losses.append(float(value))
        if i in kept:
            pictures.append(to_pixels(net, x[0]))
            print(f"step {i + 1}/{steps}  loss {losses[-1]:.4g}")
    return pictures, losses


def to_pixels(net: Net, x: jax.Array) -> np.ndarray:
    """The inverse of `normalize`: uint8."""
    pixels = np.asarray(x) * net.preprocessing.std + net.preprocessing.mean
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("content", "style", "output"):
        parser.add_argument(name)
    parser.add_argument("--weights", default="vgg16")
    parser.add_argument("--size", type=int, default=224, help="smaller side, in pixels")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    net = vgg_flax.load(options.weights, until="relu5_1")
    content, style = (
        net.preprocessing.rescale(path, options.size)
        for path in (options.content, options.style)
    )
    pictures, losses = transfer(net, content, style, options.steps)
    print(f"loss {losses[0]:.4g} -> {losses[-1]:.4g}")
    height, width = content.shape[:2]
    style = np.asarray(PIL.Image.fromarray(style).resize((width, height)))
    strip = np.concatenate([content, *pictures[1:], style], axis=1)
    PIL.Image.fromarray(strip).save(options.output)


if __name__ == "__main__":
    main()
