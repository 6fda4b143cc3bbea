"""This package's input: batches from a folder, or decoding alone."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.contenders import serve, work
from vgg_flax import config
from vgg_flax.data import batches, splits
from vgg_flax.images import codec


def _batches(spec: dict[str, Any]) -> Iterator[np.ndarray]:
    """Batches of a view without end."""
    data = config.DataConfig(
        name="folder",
        data_dir=spec["photos"],
        train_split="train",
        test_split="test",
        batch_size=spec["batch"],
        eval_batch_size=spec["batch"],
        train_resize=spec["resize"],
        auto_augment=spec.get("augment", "none"),
        num_threads=spec["threads"],
        prefetch=2,
    )
    split = splits.open_any_split("folder", spec["photos"], spec["view"], 1000)
    shard = batches.Shard()
    if spec["view"] == "train":
        made = batches.train_batches(data, split, seed=0, start_example=0, shard=shard)
        yield from (batch["image"] for batch in made)
    while True:
        for batch in batches.eval_batches(data, split, shard=shard):
            yield batch["image"]


def _decoded(spec: dict[str, Any]) -> Iterator[np.ndarray]:
    """Decoded images, as many as a batch has in one, the last of which is given out."""
    files = sorted(pathlib.Path(spec["photos"], "test").glob("*/*"))
    contents = itertools.cycle([path.read_bytes() for path in files])
    while True:
        image = np.empty(0)
        for content in itertools.islice(contents, spec["batch"]):
            image = codec.decode(content)
        yield image


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`."""
    made = _decoded(spec) if spec["view"] == "decode" else _batches(spec)
    return work.drawing(spec, "ours", made)


if __name__ == "__main__":
    serve.serve(prepare)
