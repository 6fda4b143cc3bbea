"""The paper's protocols at three scales with flips: seconds for so many images.

Dense evaluation, or 150 crops. Images are photos of 427 x 640 pixels, turned on their
side every other time. Batches are of six crops, or as many pixels: three images fill
all of dense evaluation's, one those of its 150 crops, as a whole data set's are filled;
where batches stay half empty, dense looks dearer than it is.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import sklearn.datasets

import vgg_flax
from benchmarks.contenders import serve
from vgg_flax.evaluation import posteriors, protocols
from vgg_flax.net import Net

SCALES = (256, 384, 512)
BATCH_SIZE = 6
FILLING = {"dense": 3, "multicrop": 1}  # images that fill batches


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


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`: a "protocol"."""
    net, protocol = vgg_flax.load(spec["weights"]), spec["protocol"]
    run = posteriors.Posteriors([net], posteriors.Settings(BATCH_SIZE))
    each = FILLING[protocol]

    def seconds(repetitions: int) -> float:
        """Of an image a repetition."""
        begin = time.perf_counter()
        count = repetitions * each
        assert sum(1 for _ in run.compute(examples(net, protocol, count))) == count
        return (time.perf_counter() - begin) / each

    return seconds, {}


if __name__ == "__main__":
    serve.serve(prepare)
