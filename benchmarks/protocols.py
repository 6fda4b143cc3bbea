"""Dense over three scales against the 150 crops: seconds an image, pairs in turn.

python -m benchmarks.protocols [--variant vgg16] [--images 4] [--pairs 3]: prints the
median ratio dense / multicrop, both with flips at Q = 256, 384 and 512 and with
compilation left out. Images are photos of 427 x 640 pixels, turned on their side every
other time. Four of them fill every batch of size 8, as a whole data set's are filled;
where batches stay half empty, dense looks dearer than it is.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets

from vgg_flax import VGG, config
from vgg_flax.evaluation import experiments, posteriors, protocols
from vgg_flax.images import preprocessing
from vgg_flax.net import Net
from vgg_flax.weights.card import ModelCard

SCALES = (256, 384, 512)


def random_net(variant: str, dtype: str) -> Net:
    """A net whose weights are noise: they cost as much as others."""
    model = VGG(variant)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3), jnp.float32)
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.01, 0.01, x.shape), x.dtype), shapes
    )
    pixels = preprocessing.Preprocessing.of(config.DataConfig())
    net = Net(variables, ModelCard(model, pixels))
    return experiments.adapt(net, dtype, adaptive_pool=False)


def examples(net: Net, protocol: str, count: int) -> Iterator[tuple[int, Any]]:
    """`count` images' views."""
    photos = sklearn.datasets.load_sample_images().images
    turned = [np.ascontiguousarray(np.rot90(photo)) for photo in photos]
    chosen = itertools.cycle([photos[0], turned[0], photos[1], turned[1]])
    for i, photo in enumerate(itertools.islice(chosen, count)):
        views = protocols.Protocol(protocol, SCALES, flip=True).views()
        yield (
            i,
            {(0, v): protocols.take(v, photo, net.preprocessing) for v in views},
        )


def main() -> None:
    """Runs the pairs that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", default="vgg16")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    net = random_net(options.variant, options.dtype)
    run = posteriors.Posteriors([net], posteriors.Settings(options.batch_size))

    def seconds(protocol: str) -> float:
        begin = time.perf_counter()
        done = sum(1 for _ in run.compute(examples(net, protocol, options.images)))
        assert done == options.images
        return (time.perf_counter() - begin) / options.images

    for protocol in ("dense", "multicrop"):
        seconds(protocol)  # compiles
    ratios, times = [], []
    for _ in range(options.pairs):
        times.append((seconds("dense"), seconds("multicrop")))
        ratios.append(times[-1][0] / times[-1][1])
    dense, multicrop = (
        statistics.median(column) for column in zip(*times, strict=True)
    )
    print(
        f"{options.variant} on {jax.local_device_count()} x "
        f"{jax.devices()[0].device_kind}, {options.dtype}: dense {dense:.3f} s an "
        f"image, 150 crops {multicrop:.3f} s, ratio {statistics.median(ratios):.3f} "
        f"({', '.join(f'{r:.3f}' for r in ratios)})"
    )


if __name__ == "__main__":
    main()
