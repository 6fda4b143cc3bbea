"""TFDS -> Grain -> this process's batches of uint8 images, padded and masked.

Every process sees its contiguous part of the same global batches, and which examples
and which pixels a batch holds depends on the seed and the step alone.
"""

import contextlib
import dataclasses
import difflib
import io
import logging
import tarfile
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants, registered

from vgg_flax import preprocess
from vgg_flax.config import DataConfig, VGGFlaxError
from vgg_flax.datasets import RandomAccess, digits, folder, tfrecord

Batch = dict[str, Any]  # of arrays


class DataError(VGGFlaxError):
    """A data set, split, class count or image that does not fit the run."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Labelled images in a fixed order.

    Attributes:
      name: such as "digits/train[:90%]".
      records: each `{"image": bytes, "label": int, "key": str}`.
      class_names: in the order of the labels.
    """

    name: str
    records: Any  # RandomAccess; grain's own protocol wants more of it
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of each global batch is this process's."""

    process: int = 0
    processes: int = 1

    def local_size(self, global_size: int) -> int:
        """Examples of a global batch that this process makes."""
        return global_size // self.processes


def open_split(config: DataConfig, split: str, num_classes: int) -> Split:
    """Opens `split` ("train", "train[:90%]", "train[:5]+test") of the data set.

    Raises:
      DataError: no such data set or split, not prepared, empty, or its number of
        classes is not `num_classes`.
    """
    if config.name == "folder":
        records, class_names = _open_folder(config.data_dir, split, num_classes)
    else:
        records, class_names = _open_tfds(config, split)
    name = f"{config.name}/{split}"
    if not len(records):
        raise DataError(f"{name} is empty; give a split with examples in it")
    if len(class_names) != num_classes:
        raise DataError(
            f"{name} has {len(class_names)} classes, and config.model.num_classes="
            f"{num_classes}; use --config.model.num_classes={len(class_names)}"
        )
    return Split(name, records, class_names)


def train_batches(
    config: DataConfig, split: Split, *, seed: int, start_step: int, shard: Shard
) -> Iterator[Batch]:
    """Endless training batches from `start_step` on: reshuffled at every epoch.

    Yields:
      `image` uint8 `[local, crop_size, crop_size, C]`, `label` int32 `[local]`,
      `mask` bool `[local]` (False: undecodable and skipped), `index` int32
      `[local]`, the place in the global batch, and, with `config.color_shift`,
      `color_shift` float32 `[local, 3]`.
    """
    local = shard.local_size(config.batch_size)
    index = np.arange(local, dtype=np.int32) + shard.process * local
    dataset = (
        grain.MapDataset.source(split.records)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_TrainExample(config, split))
        .batch(local)[shard.process :: shard.processes]
        .map(lambda batch: {**batch, "index": index})
    )
    return _iterate(dataset[start_step:], config)


def eval_batches(config: DataConfig, split: Split, *, shard: Shard) -> Iterator[Batch]:
    """Each example of `split` once, in order, as the test view.

    All batches are `config.eval_batch_size` long, over all processes; the last one
    is padded with zeros whose `mask` is False. Yields `image`, `label` and `mask`.
    """
    local = shard.local_size(config.eval_batch_size)
    steps = num_eval_steps(config, split)
    dataset = grain.MapDataset.source(
        _TestExamples(config, split, steps * config.eval_batch_size)
    ).batch(local)[shard.process :: shard.processes]
    return _iterate(dataset, config)


def num_eval_steps(config: DataConfig, split: Split) -> int:
    """Batches that `eval_batches` yields in every process."""
    return -(-len(split) // config.eval_batch_size)


def train_batch_shapes(config: DataConfig, shard: Shard) -> dict[str, Any]:
    """What `train_batches` yields, as shapes with a leading axis of local devices."""
    shapes = eval_batch_shapes(config, shard, config.batch_size)
    lead = shapes["label"].shape
    shapes["index"] = jax.ShapeDtypeStruct(lead, np.int32)
    if config.color_shift:
        shapes["color_shift"] = jax.ShapeDtypeStruct((*lead, 3), np.float32)
    return shapes


def eval_batch_shapes(
    config: DataConfig, shard: Shard, batch_size: int | None = None
) -> dict[str, Any]:
    """What `eval_batches` yields, as shapes with a leading axis of local devices."""
    devices = jax.local_device_count()
    local = shard.local_size(batch_size or config.eval_batch_size)
    lead, side = (devices, local // devices), config.crop_size
    return {
        "image": jax.ShapeDtypeStruct((*lead, side, side, len(config.mean)), np.uint8),
        "label": jax.ShapeDtypeStruct(lead, np.int32),
        "mask": jax.ShapeDtypeStruct(lead, np.bool_),
    }


def prepare(name: str, data_dir: str, manual_dir: str, file_format: str) -> str:
    """Downloads and writes a TFDS data set with its own builder; returns its folder.

    Raises:
      DataError: no such data set, or ImageNet's tars are not as TFDS expects them.
    """
    if name.split(":")[0] == "imagenet2012":
        _check_imagenet_tars(manual_dir or _default_manual_dir(data_dir))
    builder = _make_builder(name, data_dir, file_format=file_format)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir or None)
    try:
        builder.download_and_prepare(file_format=file_format, download_config=config)
    except ModuleNotFoundError as error:
        raise _needs_package(name, error) from error
    return str(builder.data_dir)


class _TrainExample:
    """A record -> the example that training sees of it this time."""

    def __init__(self, config: DataConfig, split: Split):
        self._config, self._split = config, split
        self._view = preprocess.make_train_view(config)

    def __call__(self, element: dict[str, Any], rng: np.random.Generator) -> Batch:
        config = self._config
        example = _decode(config, self._split, element)
        example["image"] = self._view(example["image"], rng)
        if config.color_shift:
            example["color_shift"] = preprocess.color_shift(config, rng)
        return example


class _TestExamples:
    """The test views of a split, padded to `padded_length` with masked zeros."""

    def __init__(self, config: DataConfig, split: Split, padded_length: int):
        self._config, self._split, self._length = config, split, padded_length
        self._preprocessing = preprocess.Preprocessing.of(config)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self._split):
            side, channels = self._config.crop_size, self._preprocessing.channels
            image = np.zeros((side, side, channels), np.uint8)
            return {"image": image, "label": np.int32(0), "mask": np.False_}
        example = _decode(self._config, self._split, self._split.records[index])
        example["image"] = self._preprocessing.test_view(example["image"])
        return example


def _decode(config: DataConfig, split: Split, record: dict[str, Any]) -> Batch:
    """A record with its image decoded, or a masked black one if that may be."""
    label, channels = record["label"], len(config.mean)
    if not 0 <= label < len(split.class_names):
        raise DataError(
            f"{record['key']} has label {label}; expected 0 to "
            f"{len(split.class_names) - 1}: {split.name} has no labels to learn or test"
        )
    mask = np.True_
    try:
        image = preprocess.decode(record["image"], channels)
    except preprocess.ImageError as error:
        if config.on_bad_image == "stop":
            raise DataError(
                f"{record['key']}: {error}; replace it, or go on without it: "
                "--config.data.on_bad_image=skip"
            ) from error
        logging.warning("skipped %s: %s", record["key"], error)
        image, mask = np.zeros((32, 32, channels), np.uint8), np.False_
    return {"image": image, "label": np.int32(label), "mask": mask}


def read_options(config: DataConfig) -> grain.ReadOptions:
    """Threads, not processes: decoding and resizing release the GIL."""
    return grain.ReadOptions(
        num_threads=config.num_threads,
        prefetch_buffer_size=max(config.num_threads, config.prefetch),
    )


def _iterate(dataset: grain.MapDataset, config: DataConfig) -> Iterator[Batch]:
    return iter(dataset.to_iter_dataset(read_options(config)))


def _open_folder(
    root: str, split: str, num_classes: int
) -> tuple[RandomAccess, tuple[str, ...]]:
    if not root:
        raise DataError(
            "config.data.name='folder' needs the folder that holds SPLIT/CLASS/*: "
            "--config.data.data_dir=DIR"
        )
    try:
        instruction = tfds.core.ReadInstruction.from_spec(split)
        names = [part.split("[")[0].strip() for part in split.split("+")]
        listed = {name: folder.list_images(root, name, num_classes) for name in names}
        sizes = {
            name: types.SimpleNamespace(num_examples=len(items))
            for name, (items, _) in listed.items()
        }
        parts = instruction.to_absolute(sizes)
    except (ValueError, AttributeError) as error:  # AttributeError: slices of shards
        raise DataError(f"split {split!r} of {root}: {error}") from error
    items = [
        i for part in parts for i in listed[part.splitname][0][part.from_ : part.to]
    ]
    return folder.ImageFiles(items), listed[names[0]][1]


class _TFDSRecords:
    """A TFDS split as records, with the image still encoded."""

    def __init__(self, examples: RandomAccess, keys: tuple[str, str], name: str):
        self._examples, self._keys, self._name = examples, keys, name

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        example = self._examples[index]
        image, label = self._keys
        key = f"{self._name}, example {index}"
        if "file_name" in example:
            key += f" ({example['file_name'].decode()})"
        return {"image": example[image], "label": int(example[label]), "key": key}


class _Deserialized:
    """Payloads of serialized examples, parsed."""

    def __init__(self, payloads: RandomAccess, features: Any, decoders: Any):
        self._payloads, self._features, self._decoders = payloads, features, decoders

    def __len__(self) -> int:
        return len(self._payloads)

    def __getitem__(self, index: int) -> dict[str, Any]:
        payload = self._payloads[index]
        return self._features.deserialize_example_np(payload, decoders=self._decoders)


def _open_tfds(config: DataConfig, split: str) -> tuple[RandomAccess, tuple[str, ...]]:
    builder = _make_builder(config.name, config.data_dir)
    if config.name == "digits" and not _is_prepared(builder):
        _write_digits(config.data_dir)
        builder = _make_builder(config.name, config.data_dir)
    keys, features = builder.info.supervised_keys, builder.info.features
    if not (
        keys
        and isinstance(features[keys[0]], tfds.features.Image)
        and isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise DataError(
            f"data set {config.name!r} is not of (image, class label) pairs"
        )
    decoders = {keys[0]: tfds.decode.SkipDecoding()}
    is_prepared = _is_prepared(builder)
    is_tfrecord = builder.info.file_format == tfds.core.FileFormat.TFRECORD
    try:
        if is_prepared and builder.info.splits[split].num_examples < 1:
            raise DataError(f"{config.name}/{split} is empty; give another split")
        if is_prepared and is_tfrecord:
            payloads = tfrecord.TFRecords(builder.info.splits[split].file_instructions)
            examples = _Deserialized(payloads, features, decoders)
        else:
            examples = builder.as_data_source(split=split, decoders=decoders)
    except (ValueError, NotImplementedError, AssertionError) as error:
        if is_prepared:
            raise DataError(f"split {split!r} of {config.name}: {error}") from error
        where = f" --data-dir {config.data_dir}" if config.data_dir else ""
        raise DataError(
            f"data set {config.name!r} is not prepared in {builder.data_dir}; run: "
            f"vgg-flax prepare {config.name}{where}"
        ) from error
    name = f"{config.name}/{split}"
    return _TFDSRecords(examples, keys, name), tuple(features[keys[1]].names)


def _make_builder(name: str, data_dir: str, **kwargs: Any) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir or None, **kwargs)
    except ModuleNotFoundError as error:
        raise _needs_package(name, error) from error
    except registered.DatasetNotFoundError as error:
        close = difflib.get_close_matches(
            name, [*tfds.list_builders(with_community_datasets=False), "folder"], n=3
        )
        raise DataError(
            f"data set {name!r} is not known to TFDS; "
            + (f"near it: {', '.join(close)}; " if close else "")
            + "for your own images use --config.data.name=folder"
        ) from error
    except (ValueError, AssertionError) as error:  # a config or version, a bad name
        raise DataError(f"data set {name!r}: {error}".replace("\n", " ")) from error


def _needs_package(name: str, error: ModuleNotFoundError) -> DataError:
    return DataError(
        f"data set {name!r} needs the package {error.name or 'tensorflow'}; "
        "install it: pip install 'vgg-flax[prepare]'"
    )


def _is_prepared(builder: Any) -> bool:
    # builder.is_prepared() logs a warning where the folder does not exist.
    return (epath.Path(builder.data_dir) / "dataset_info.json").exists()


def _write_digits(data_dir: str) -> None:
    """Writes the embedded data set, so that several processes may try at once."""
    target = epath.Path(digits.Digits(data_dir=data_dir or None).data_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        builder = digits.Digits(data_dir=scratch, file_format="array_record")
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # it talks of downloading
            builder.download_and_prepare()
        try:
            epath.Path(builder.data_dir).rename(target)
        except OSError:  # another process was first
            if not _is_prepared(digits.Digits(data_dir=data_dir or None)):
                raise


def _default_manual_dir(data_dir: str) -> str:
    root = data_dir or constants.DATA_DIR
    return str(epath.Path(root) / "downloads" / "manual")


def _check_imagenet_tars(manual_dir: str) -> None:
    """Looks for what TFDS' builder takes in silence and gets wrong.

    It labels validation images by their sorted position in the tar: one member more
    (a directory, say) shifts all the labels after it.
    """
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        path = epath.Path(manual_dir) / name
        if not path.exists():
            raise DataError(
                f"{path} is missing; download it from image-net.org (it needs an "
                "account there) and name its folder with --manual-dir"
            )
    try:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
    except tarfile.ReadError as error:
        reasons = " ".join(str(error).split())
        raise DataError(f"{path} is no whole tar file: {reasons}") from error
    names = [member.name for member in members if member.isfile()]
    for member in members:
        if not (member.isfile() and folder.IMAGENET_VALIDATION.fullmatch(member.name)):
            raise DataError(
                f"{path} holds {member.name!r}; expected nothing but "
                "ILSVRC2012_val_00000001.JPEG ..., without folders or prefixes: "
                "use the tar as it comes from image-net.org"
            )
    expected = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, len(names) + 1)]
    if sorted(names) != expected:
        missing = sorted(set(expected) - set(names))[0]
        raise DataError(
            f"{path} holds {len(names)} images and lacks {missing}; use the tar as it "
            "comes from image-net.org"
        )
