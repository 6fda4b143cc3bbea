"""TFDS' data sets as records, with their images still encoded; and preparing them.

array_record files are read by TFDS, tfrecord files by `tfrecord`, neither with
TensorFlow, which only most of TFDS' builders need, to prepare.
"""

import contextlib
import difflib
import io
import tarfile
import tempfile
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants, registered

from vgg_flax.data import DataError, RandomAccess, digits, folder, tfrecord


def open_split(
    name: str, data_dir: str, split: str
) -> tuple[RandomAccess, tuple[str, ...]]:
    """A split's records, `{"image": bytes, "label": int, "key": str}`, and its classes.

    Raises:
      DataError: no such data set or split, not prepared, empty, or not of images with
        class labels.
    """
    builder = _make_builder(name, data_dir)
    if name == "digits" and not _is_prepared(builder):
        _write_digits(data_dir)
        builder = _make_builder(name, data_dir)
    keys, features = builder.info.supervised_keys, builder.info.features
    if not (
        keys
        and isinstance(features[keys[0]], tfds.features.Image)
        and isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise DataError(f"data set {name!r} is not of (image, class label) pairs")
    decoders = {keys[0]: tfds.decode.SkipDecoding()}
    is_prepared = _is_prepared(builder)
    is_tfrecord = builder.info.file_format == tfds.core.FileFormat.TFRECORD
    try:
        if is_prepared and builder.info.splits[split].num_examples < 1:
            raise DataError(f"{name}/{split} is empty; give another split")
        if is_prepared and is_tfrecord:
            payloads = tfrecord.TFRecords(builder.info.splits[split].file_instructions)
            examples = _Deserialized(payloads, features, decoders)
        else:
            examples = builder.as_data_source(split=split, decoders=decoders)
    except (ValueError, NotImplementedError, AssertionError) as error:
        if is_prepared:
            raise DataError(f"split {split!r} of {name}: {error}") from error
        where = f" --data-dir {data_dir}" if data_dir else ""
        raise DataError(
            f"data set {name!r} is not prepared in {builder.data_dir}; run: "
            f"vgg-flax prepare {name}{where}"
        ) from error
    records = _TFDSRecords(examples, keys, f"{name}/{split}")
    return records, tuple(features[keys[1]].names)


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
            + "your own images: an existing folder, as --data, or as "
            "--config.data.data_dir with --config.data.name=folder"
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
