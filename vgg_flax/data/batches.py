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
    examples = DecodedExamples(config, split, skipped)
    dataset = (
        grain.MapDataset.source(_Reshuffled(examples, seed))
        .seed(seed)
        .random_map(_TrainView([(0, config), *later], skipped))[start_example:]
        .batch(local)[shard.process :: shard.processes]
        .map(lambda batch: {**batch, "index": index})
    )
    return _iterate(dataset, config)


def eval_batches(
    config: DataConfig, split: Split, *, shard: Shard, skipped: Skipped | None = None
) -> Iterator[Batch]:
    """Each example of `split` once, in order, as the test view.

    All batches are `config.eval_batch_size` long, over all processes; the last one
    is padded with zeros whose `mask` is False. Yields `image`, `label` and `mask`.
    Images that are left out are added to `skipped`.
    """
    skipped = Skipped() if skipped is None else skipped
    local = shard.local_size(config.eval_batch_size)
    steps = num_eval_steps(config, split)
    dataset = grain.MapDataset.source(
        _TestExamples(config, split, steps * config.eval_batch_size, skipped)
    ).batch(local)[shard.process :: shard.processes]
    return _iterate(dataset, config)


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


class _Reshuffled:
    """`examples` again and again, each epoch in an order of its own, with `seen`.

    That is how many came before.

    A permutation per epoch, kept while it is in use: Grain's own shuffle computes
    each place anew, in 30 us an example, which is most of what a small one costs.
    """

    def __init__(self, examples: DecodedExamples, seed: int):
        self._examples, self._seed = examples, seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        return 1 << 53  # endless; Grain divides it by the batch size, as a float

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(index, len(self._examples))
        return {**self._examples[int(self._order(epoch)[place])], "seen": index}

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, epoch))
        return rng.permutation(len(self._examples))


class _TrainView:
    """A decoded record -> the example that training sees of it this time."""

    def __init__(self, stages: Sequence[tuple[int, DataConfig]], skipped: Skipped):
        self._starts = [start for start, _ in stages]
        self._stages = [(c, augmentation.make_train_view(c)) for _, c in stages]
        self._skipped = skipped

    def __call__(self, element: Batch, rng: np.random.Generator) -> Batch:
        stage = bisect.bisect_right(self._starts, element["seen"]) - 1
        config, view = self._stages[stage]
        example = _view(config, element, lambda image: view(image, rng), self._skipped)
        if config.color_shift:
            example["color_shift"] = augmentation.color_shift(config, rng)
        return example


class _TestExamples:
    """The test views of a split, padded to `padded_length` with masked zeros."""

    def __init__(
        self, config: DataConfig, split: Split, padded_length: int, skipped: Skipped
    ):
        self._config, self._split, self._length = config, split, padded_length
        self._skipped = skipped
        self._preprocessing = preprocessing.Preprocessing.of(config)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
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
