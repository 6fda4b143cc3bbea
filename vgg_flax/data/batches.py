"""TFDS -> Grain -> this process's batches of uint8 images, padded and masked.

Every process sees its contiguous part of the same global batches, and which examples
and which pixels a batch holds depends on the seed and on how many came before it alone.
"""

import bisect
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from vgg_flax import console
from vgg_flax.config import DataConfig, mean_and_std
from vgg_flax.data import DataError
from vgg_flax.data.splits import Split
from vgg_flax.images import augmentation, codec, preprocessing

Batch = dict[str, Any]  # of arrays


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of each global batch is this process's."""

    process: int = 0
    processes: int = 1

    def local_size(self, global_size: int) -> int:
        """Examples of a global batch that this process makes."""
        return global_size // self.processes


class Skipped:
    """The images that a run goes on without, by their names; each is told once."""

    def __init__(self) -> None:
        self._first: dict[str, object] = {}

    def __len__(self) -> int:
        return len(self._first)

    def add(self, name: str, why: str) -> None:
        """From any thread."""
        mine = object()
        if self._first.setdefault(name, mine) is mine:
            console.tell(f"skipped {name}: {why}")


def train_batches(
    config: DataConfig,
    split: Split,
    *,
    seed: int,
    start_example: int,
    shard: Shard,
    skipped: Skipped | None = None,
    later: Sequence[tuple[int, DataConfig]] = (),
) -> Iterator[Batch]:
    """Endless training batches, reshuffled at every epoch.

    They begin behind the first `start_example` examples, whatever the size of the
    batches that those came in. Images that are left out are added to `skipped`.

    Args:
      config: of the data.
      split: that is trained on.
      seed: of the orders and the views.
      start_example: how many examples to leave out.
      shard: which part of each batch is made.
      skipped: by which images that are left out are told.
      later: `(example, settings)`, in order: the side and S of views from that example
        on, where a batch begins; all else is as in `config`.

    Yields:
      `image` uint8 `[local, crop_size, crop_size, C]`, `label` int32 `[local]`,
      `mask` bool `[local]` (False: undecodable and skipped), `index` int32
      `[local]`, the place in the global batch, and, with `config.color_shift`,
      `color_shift` float32 `[local, 3]`.
    """
    local = shard.local_size(config.batch_size)
    index = np.arange(local, dtype=np.int32) + shard.process * local
    skipped = Skipped() if skipped is None else skipped
    views = _TrainViews(config, split, seed, skipped, later)
    made = _Batches(views, local, shard, start=start_example)
    dataset = grain.MapDataset.source(made)
    return _iterate(dataset.map(lambda batch: {**batch, "index": index}), config)


def eval_batches(
    config: DataConfig, split: Split, *, shard: Shard, skipped: Skipped | None = None
) -> Iterator[Batch]:
    """Each example of `split` once, in order, as the test view.

    All batches are `config.eval_batch_size` long, over all processes; the last one
    is padded with zeros whose `mask` is False. Yields `image`, `label` and `mask`.
    Images that are left out are added to `skipped`.
    """
    local = shard.local_size(config.eval_batch_size)
    skipped = Skipped() if skipped is None else skipped
    views = _TestViews(config, split, skipped)
    made = _Batches(views, local, shard, count=num_eval_steps(config, split))
    return _iterate(grain.MapDataset.source(made), config)


def num_eval_steps(config: DataConfig, split: Split) -> int:
    """Batches that `eval_batches` yields in every process."""
    return -(-len(split) // config.eval_batch_size)


def faster_batches(config: DataConfig) -> str:
    """What is left to do where batches come too slowly, as settings, for people."""
    cores = os.cpu_count() or 1
    remedies = []
    if config.num_threads < cores:
        remedies.append(f"--config.data.num_threads={cores}")
    if config.train_resize != "cv2":
        remedies.append("--config.data.train_resize=cv2 (other pixels)")
    if not config.cache:
        remedies.append("--config.data.cache=true (decoded images in memory)")
    return " or ".join([*remedies, f"more than these {cores} cores"])


def batch_shapes(
    config: DataConfig, lead: tuple[int, ...], *, train: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """What `train_batches` or `eval_batches` yield, as shapes.

    Args:
      config: of the data.
      lead: the first axes: `(batch,)`, or `(devices, each)` as `parallel.shard` has it.
      train: whether as `train_batches`.
    """
    shape, side = jax.ShapeDtypeStruct, config.crop_size
    shapes = {
        "image": shape((*lead, side, side, _channels(config)), np.uint8),
        "label": shape(lead, np.int32),
        "mask": shape(lead, np.bool_),
    }
    if train:
        shapes["index"] = shape(lead, np.int32)
        if config.color_shift:
            shapes["color_shift"] = shape((*lead, 3), np.float32)
    return shapes


class DecodedExamples:
    """The records of a split with their images decoded; in memory if so configured."""

    def __init__(
        self, config: DataConfig, split: Split, skipped: Skipped | None = None
    ):
        self._config, self._split = config, split
        self._skipped = Skipped() if skipped is None else skipped
        self._cache: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Batch:
        if index in self._cache:
            return self._cache[index]
        example = _decode(self._config, self._split, index, self._skipped)
        if self._config.cache:
            self._cache[index] = example
        return example


class _Batches:
    """One process's parts of the global batches, by their numbers.

    Grain's threads are given whole batches: what Grain does for an element, and to
    stack them, was 52 of 86 us of a small image and an eighth of a photo's time.
    """

    def __init__(
        self,
        views: Callable[[int, int], Iterator[Batch]],
        local: int,
        shard: Shard,
        *,
        start: int = 0,
        count: int = 1 << 53,  # without end
    ):
        self._views, self._local, self._shard = views, local, shard
        self._start, self._count = start, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        part = index * self._shard.processes + self._shard.process
        batch: Batch = {}
        views = self._views(self._start + part * self._local, self._local)
        for place, example in enumerate(views):
            for name, value in example.items():
                if not place:
                    batch[name] = np.empty((self._local, *value.shape), value.dtype)
                batch[name][place] = value
        return batch


class _TrainViews:
    """The examples that training sees: each epoch's in an order of its own.

    An example's view is drawn from a generator of its own, which its number counts, so
    that it depends on neither batches nor processes.
    """

    def __init__(
        self,
        config: DataConfig,
        split: Split,
        seed: int,
        skipped: Skipped,
        later: Sequence[tuple[int, DataConfig]],
    ):
        stages = [(0, config), *later]
        self._starts = [start for start, _ in stages]
        self._stages = [(c, augmentation.make_train_view(c)) for _, c in stages]
        self._examples = DecodedExamples(config, split, skipped)
        self._seed, self._skipped = seed, skipped
        # What Grain's `seed` and `random_map` make of it: runs of earlier versions go
        # on with the views that they had.
        (derived,) = np.random.SeedSequence((seed, 1)).generate_state(1)
        self._key = np.random.Philox(int(derived)).state["state"]["key"]
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, first: int, count: int) -> Iterator[Batch]:
        """`count` examples, before the first of which so many came."""
        rng = np.random.Generator(np.random.Philox(key=self._key))
        fresh: Any = rng.bit_generator.state
        for number in range(first, first + count):
            fresh["state"]["counter"][3] = number
            rng.bit_generator.state = fresh
            yield self._example(number, rng)

    def _example(self, number: int, rng: np.random.Generator) -> Batch:
        epoch, place = divmod(number, len(self._examples))
        decoded = self._examples[int(self._order(epoch)[place])]
        config, view = self._stages[bisect.bisect_right(self._starts, number) - 1]
        example = _view(config, decoded, lambda image: view(image, rng), self._skipped)
        if config.color_shift:
            example["color_shift"] = augmentation.color_shift(config, rng)
        return example

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, epoch))
        return rng.permutation(len(self._examples))


class _TestViews:
    """The test views of a split, and behind them masked zeros."""

    def __init__(self, config: DataConfig, split: Split, skipped: Skipped):
        self._config, self._split, self._skipped = config, split, skipped
        self._preprocessing = preprocessing.Preprocessing.of(config)

    def __call__(self, first: int, count: int) -> Iterator[Batch]:
        """`count` examples from the first on."""
        return map(self._example, range(first, first + count))

    def _example(self, index: int) -> Batch:
        if index >= len(self._split):
            side, channels = self._config.crop_size, self._preprocessing.channels
            image = np.zeros((side, side, channels), np.uint8)
            return {"image": image, "label": np.int32(0), "mask": np.False_}
        decoded = _decode(self._config, self._split, index, self._skipped)
        view = self._preprocessing.test_view
        return _view(self._config, decoded, view, self._skipped)


def _decode(config: DataConfig, split: Split, index: int, skipped: Skipped) -> Batch:
    """A decoded record with its `key`, or a masked black one if that may be."""
    channels = _channels(config)
    black = {"image": np.zeros((32, 32, channels), np.uint8), "mask": np.False_}
    try:
        record = split.records[index]
    except OSError as error:
        key = error.filename or f"image {index} of {split.name}"
        _leave_out(config, skipped, key, error.strerror or str(error), error)
        return {**black, "key": key, "label": np.int32(0)}
    key, label = record["key"], record["label"]
    if not 0 <= label < len(split.class_names):
        raise DataError(
            f"{key} has label {label}; expected 0 to "
            f"{len(split.class_names) - 1}: {split.name} has no labels to learn or test"
        )
    example = {"key": key, "label": np.int32(label)}
    try:
        image = codec.decode(record["image"], channels, config.orientation)
    except codec.ImageError as error:
        _leave_out(config, skipped, key, str(error), error)
        return {**example, **black}
    return {**example, "image": image, "mask": np.True_}


def _view(
    config: DataConfig,
    example: Batch,
    view: Callable[[np.ndarray], np.ndarray],
    skipped: Skipped,
) -> Batch:
    """A view of a decoded record, without its key; masked and black as `_decode`."""
    key, mask = example["key"], example["mask"]
    try:
        with codec.enough_memory():
            image = view(example["image"])
    except codec.ImageError as error:
        _leave_out(config, skipped, key, str(error), error)
        side, mask = config.crop_size, np.False_
        image = np.zeros((side, side, _channels(config)), np.uint8)
    return {"image": image, "label": example["label"], "mask": mask}


def _channels(config: DataConfig) -> int:
    return len(mean_and_std(config)[0])


def _leave_out(
    config: DataConfig, skipped: Skipped, key: str, why: str, error: Exception
) -> None:
    """Adds an image that is left out; raises DataError where it may not be."""
    if config.on_bad_image == "stop":
        raise DataError(
            f"{key}: {why}; replace it, or go on without it: "
            "--config.data.on_bad_image=skip"
        ) from error
    skipped.add(key, why)


def read_options(config: DataConfig) -> grain.ReadOptions:
    """Threads, not processes: decoding and resizing release the GIL."""
    return grain.ReadOptions(
        num_threads=config.num_threads,
        prefetch_buffer_size=max(config.num_threads, config.prefetch),
    )


def _iterate(dataset: grain.MapDataset, config: DataConfig) -> Iterator[Batch]:
    return iter(dataset.to_iter_dataset(read_options(config)))
