"""`vgg-flax prepare`: what it writes, what it refuses, and TFDS' ImageNet builder."""

import dataclasses
import importlib.util
import io
import itertools
import json
import pathlib
import tarfile

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from vgg_flax import cli, config
from vgg_flax.data import batches as batches_lib
from vgg_flax.data import splits
from vgg_flax.data.batches import Batch, Shard

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def refusal(
    capsys: pytest.CaptureFixture[str], *arguments: object, exit_code: int = 1
) -> str:
    """Runs a command that must fail; returns what it wrote to stderr."""
    assert cli.main([str(argument) for argument in arguments]) == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def photo(seed: int) -> bytes:
    """A small JPEG of smooth noise, another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(coarse).resize((50, 40))
    stream = io.BytesIO()
    picture.save(stream, "JPEG")
    return stream.getvalue()


def tar_of(members: dict[str, bytes | None]) -> bytes:
    """A tar file in memory; a member of None is a directory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
    return stream.getvalue()


# Without TensorFlow


@pytest.mark.parametrize(
    "name", ["no_such_set", "digts", "", "no such set", "cifar10:9.9.9"]
)
def test_an_unknown_name_is_refused(
    name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    message = refusal(capsys, "prepare", name, "--data-dir", tmp_path)
    assert repr(name) in message
    if name == "digts":
        assert "digits" in message
    assert not list(tmp_path.iterdir())


def test_digits_are_written_and_the_place_is_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    command = ["prepare", "digits", "--data-dir", str(tmp_path)]
    assert cli.main(command) == 0
    place = tmp_path / "digits" / "1.0.0"
    out = capsys.readouterr().out
    assert f"prepared digits in {place}\n" in out
    assert f"--config.data.name=digits --config.data.data_dir={tmp_path}\n" in out
    info = json.loads((place / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    data = config.DataConfig(name="digits", data_dir=str(tmp_path))
    assert len(splits.open_split(data, "train", 10)) == 1437

    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    assert cli.main(command) == 0  # again: it is there already
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before


def test_a_data_set_prepared_in_another_format_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    command = ("prepare", "digits", "--data-dir", str(tmp_path))
    assert cli.main(command) == 0
    capsys.readouterr()
    message = refusal(capsys, *command, "--file-format", "tfrecord")
    assert "'digits'" in message
    assert "array_record" in message.lower() and "tfrecord" in message.lower()


def test_tfrecord_files_take_tensorflow_to_write(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    command = ("prepare", "digits", "--file-format", "tfrecord", "--data-dir", tmp_path)
    if importlib.util.find_spec("tensorflow"):
        assert cli.main([str(argument) for argument in command]) == 0
        data = config.DataConfig(name="digits", data_dir=str(tmp_path))
        assert len(splits.open_split(data, "test", 10)) == 360
        assert list(tmp_path.glob("digits/1.0.0/*.tfrecord-*"))
    else:
        assert cli.main([str(argument) for argument in command]) == 1
        message = capsys.readouterr().err
        assert "tensorflow" in message and "pip install 'vgg-flax[prepare]'" in message


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]):
    for arguments in (["prepare"], ["prepare", "digits", "--file-format", "csv"], []):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
        assert "usage: vgg-flax" in capsys.readouterr().err


@pytest.mark.parametrize("present", [(), (TRAIN,), (VALIDATION,)], ids=str)
@pytest.mark.parametrize("name", ["imagenet2012", "imagenet2012:5.1.0"])
def test_imagenet_without_its_tars_is_refused(
    name: str,
    present: tuple[str, ...],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    for tar in present:
        (tmp_path / tar).write_bytes(tar_of({}))
    arguments = ("--data-dir", tmp_path / "data", "--manual-dir", tmp_path)
    message = refusal(capsys, "prepare", name, *arguments)
    missing = VALIDATION if TRAIN in present else TRAIN
    assert str(tmp_path / missing) in message and "--manual-dir" in message
    assert not (tmp_path / "data").exists()


def test_imagenets_tars_are_looked_for_where_tfds_does(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    message = refusal(capsys, "prepare", "imagenet2012", "--data-dir", tmp_path)
    assert str(tmp_path / "downloads" / "manual" / TRAIN) in message


FIRST = "ILSVRC2012_val_00000001.JPEG"


@pytest.mark.parametrize(
    ("members", "culprit"),
    [
        ({"val/": None, FIRST: b"1"}, "val"),
        ({".": None, f"./{FIRST}": b"1"}, "."),
        ({f"./{FIRST}": b"1"}, f"./{FIRST}"),
        ({f"val/{FIRST}": b"1"}, f"val/{FIRST}"),
        ({FIRST: b"1", "readme.txt": b"2"}, "readme.txt"),
        ({FIRST: b"1", FIRST.replace("JPEG", "jpg"): b"2"}, "ILSVRC2012_val_0000"),
        ({FIRST: None}, FIRST),
    ],
    ids=[
        "a directory",
        "the directory itself",
        "a ./ prefix",
        "in a folder",
        "another file",
        "another suffix",
        "a directory of an image's name",
    ],
)
def test_a_validation_tar_that_tfds_would_mislabel_is_refused(
    members: dict[str, bytes | None],
    culprit: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / TRAIN).write_bytes(tar_of({}))
    (tmp_path / VALIDATION).write_bytes(tar_of(members))
    arguments = ("--data-dir", tmp_path / "data", "--manual-dir", tmp_path)
    message = refusal(capsys, "prepare", "imagenet2012", *arguments)
    assert str(tmp_path / VALIDATION) in message and f"{culprit}" in message
    assert not (tmp_path / "data").exists()


def test_a_gap_in_the_validation_tar_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    # TFDS would give image 3 the label of image 2.
    third = FIRST.replace("1.JPEG", "3.JPEG")
    (tmp_path / TRAIN).write_bytes(tar_of({}))
    (tmp_path / VALIDATION).write_bytes(tar_of({FIRST: b"1", third: b"3"}))
    arguments = ("--data-dir", tmp_path / "data", "--manual-dir", tmp_path)
    message = refusal(capsys, "prepare", "imagenet2012", *arguments)
    assert str(tmp_path / VALIDATION) in message


@pytest.mark.parametrize("content", [b"", b"not a tar " * 99], ids=["empty", "text"])
def test_a_validation_tar_that_is_none_is_refused(
    content: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / TRAIN).write_bytes(tar_of({}))
    (tmp_path / VALIDATION).write_bytes(content)
    arguments = ("--data-dir", tmp_path / "data", "--manual-dir", tmp_path)
    message = refusal(capsys, "prepare", "imagenet2012", *arguments)
    assert str(tmp_path / VALIDATION) in message


# With TensorFlow

# Synset -> ImageNet's label. Validation image 1 is a sea snake, image 2 an alp.
SYNSETS = {"n01440764": 0, "n02123045": 281, "n15075141": 999}
VALIDATION_LABELS = {1: 65, 2: 970}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """ImageNet with 3 x 5 and 2 images, written by `vgg-flax prepare` in each format:
    `{file_format: data_dir}`.
    """
    pytest.importorskip("tensorflow")
    root = tmp_path_factory.mktemp("imagenet")
    seeds = itertools.count()
    train = {
        f"{synset}.tar": tar_of(
            {f"{synset}_{i}.JPEG": photo(next(seeds)) for i in "1234"}
        )
        for synset in SYNSETS
    }
    validation = {
        f"ILSVRC2012_val_{number:08}.JPEG": photo(100 + number)
        for number in VALIDATION_LABELS
    }
    (root / TRAIN).write_bytes(tar_of(train))
    (root / VALIDATION).write_bytes(tar_of(validation))
    data_dirs = {}
    for file_format in ("array_record", "tfrecord"):
        data_dirs[file_format] = str(root / file_format)
        arguments = ["--data-dir", data_dirs[file_format], "--manual-dir", str(root)]
        command = ["prepare", "imagenet2012", *arguments, "--file-format", file_format]
        assert cli.main(command) == 0
        folder = pathlib.Path(data_dirs[file_format]) / "imagenet2012" / "5.1.0"
        info = json.loads((folder / "dataset_info.json").read_text())
        assert info["fileFormat"] == file_format
    return data_dirs


def imagenet(data_dir: str) -> config.DataConfig:
    return config.DataConfig(
        name="imagenet2012",
        data_dir=data_dir,
        batch_size=8,
        eval_batch_size=8,
        train_scale=(32, 40),
        crop_size=32,
        test_scale=32,
        color_shift=0.1,
        num_threads=2,
        prefetch=2,
    )


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_miniature_imagenet_has_its_images_and_labels(
    file_format: str, miniature: dict[str, str]
):
    data = imagenet(miniature[file_format])
    train = splits.open_split(data, "train", 1000)
    records = [train.records[i] for i in range(len(train))]
    assert len(records) == 12
    originals = {
        photo(seed): label for seed, label in enumerate(np.repeat([0, 281, 999], 4))
    }
    assert {record["image"]: record["label"] for record in records} == originals
    for record in records:
        (synset,) = (name for name in SYNSETS if name in record["key"])
        assert SYNSETS[synset] == record["label"]

    validation = splits.open_split(data, "validation", 1000)
    found = {
        record["image"]: record["label"]
        for record in (validation.records[i] for i in range(len(validation)))
    }
    expected = {photo(100 + n): label for n, label in VALIDATION_LABELS.items()}
    assert found == expected


@pytest.mark.parametrize("split", ["train", "train[:75%]", "validation"])
def test_both_formats_give_the_same_batches(split: str, miniature: dict[str, str]):
    def batches(data_dir: str) -> list[Batch]:
        data = imagenet(data_dir)
        opened = splits.open_split(data, split, 1000)
        shard = Shard()
        train = batches_lib.train_batches(
            data, opened, seed=0, start_example=2, shard=shard
        )
        test = batches_lib.eval_batches(data, opened, shard=shard)
        return [*itertools.islice(train, 5), *test]

    both = batches(miniature["array_record"]), batches(miniature["tfrecord"])
    for one, other in zip(*both, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_tfds_mock_data_gives_batches(tmp_path: pathlib.Path):
    pytest.importorskip("tensorflow")
    data = dataclasses.replace(imagenet(str(tmp_path)), name="cifar10")
    with tfds.testing.mock_data(num_examples=5):
        split = splits.open_split(data, "train", 10)
        assert len(split) == 5
        assert split.records[0]["image"][:4] == b"\x89PNG"
        (batch,) = batches_lib.eval_batches(data, split, shard=Shard())
    assert batch["image"].shape == (8, 32, 32, 3) and batch["mask"].sum() == 5
    for i in range(5):
        decoded = PIL.Image.open(io.BytesIO(split.records[i]["image"]))
        np.testing.assert_array_equal(batch["image"][i], np.asarray(decoded))
        assert batch["label"][i] == split.records[i]["label"]
