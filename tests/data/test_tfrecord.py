"""Reading tfrecord files without TensorFlow, beside array_record's reader."""

import concurrent.futures
import dataclasses
import itertools
import json
import pathlib
import random
import types
from typing import Any

import numpy as np
import pytest
from array_record.python import array_record_module
from tensorboardX import record_writer

from vgg_flax import config
from vgg_flax.data import batches as batches_lib
from vgg_flax.data import splits, tfrecord
from vgg_flax.data.batches import Batch, DataError, Shard

SHARDS = {"train": (400, 1, 636, 400), "test": (200, 160)}


def payloads_of(folder: pathlib.Path, split: str) -> list[bytes]:
    """All records of a split's array_record files, as array_record reads them."""
    payloads = []
    for path in sorted(folder.glob(f"digits-{split}.array_record-*")):
        reader = array_record_module.ArrayRecordReader(str(path))
        payloads += reader.read_all()
        reader.close()
    return payloads


def write_tfrecord(path: pathlib.Path, payloads: list[bytes]) -> None:
    """An independent writer, with checksums."""
    writer = record_writer.RecordWriter(str(path))
    for payload in payloads:
        writer.write(payload)
    writer.close()


@pytest.fixture(scope="module")
def converted_dir(
    digits_dir: str, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A data_dir with the digits as tfrecord, cut into `SHARDS`."""
    splits.open_split(config.DataConfig(name="digits", data_dir=digits_dir), "all", 10)
    source = pathlib.Path(digits_dir) / "digits" / "1.0.0"
    root = tmp_path_factory.mktemp("tfrecord")
    target = root / "digits" / "1.0.0"
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt"):
            (target / path.name).write_bytes(path.read_bytes())

    info = json.loads((source / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        counts = SHARDS[split["name"]]
        split["shardLengths"] = [str(count) for count in counts]
        payloads = iter(payloads_of(source, split["name"]))
        for i, count in enumerate(counts):
            name = f"digits-{split['name']}.tfrecord-{i:05}-of-{len(counts):05}"
            write_tfrecord(target / name, list(itertools.islice(payloads, count)))
        assert not list(payloads)
    (target / "dataset_info.json").write_text(json.dumps(info))
    return root


def records(data: config.DataConfig, split: str) -> list[tuple[bytes, int]]:
    opened = splits.open_split(data, split, 10)
    pairs = (opened.records[i] for i in range(len(opened)))
    return [(record["image"], record["label"]) for record in pairs]


@pytest.mark.parametrize(
    "split",
    [
        "train",
        "test",
        "train[:90%]",
        "train[90%:]",
        "train[399:402]",
        "train[400:401]",
        "train[401:]",
        "train[-1:]",
        "train[10%:95%]",
        "train[450:500]",
        "test[-3:]+train[398:403]",
        "all",
    ],
)
def test_a_split_holds_what_the_array_record_one_holds(
    split: str, tiny_config: config.Config, converted_dir: pathlib.Path
):
    data = dataclasses.replace(tiny_config.data, data_dir=str(converted_dir))
    expected = records(tiny_config.data, split)
    assert len(expected) > 0
    assert records(data, split) == expected


def test_batches_are_those_of_the_array_record(
    tiny_config: config.Config, converted_dir: pathlib.Path
):
    def batches(data_dir: str) -> list[Batch]:
        data = dataclasses.replace(tiny_config.data, data_dir=data_dir)
        split = splits.open_split(data, "train[:90%]", 10)
        shard = Shard()
        train = batches_lib.train_batches(
            data, split, seed=3, start_example=15, shard=shard
        )
        test = batches_lib.eval_batches(data, split, shard=shard)
        return [*itertools.islice(train, 10), *test]

    both = batches(tiny_config.data.data_dir), batches(str(converted_dir))
    assert len(both[0]) == 10 + 21
    for expected, batch in zip(*both, strict=True):
        assert batch.keys() == expected.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], expected[name])


@pytest.mark.parametrize("split", ["validation", "train[", "train[:0]", "train[5:2]"])
def test_a_split_that_is_not_there_is_refused(
    split: str, tiny_config: config.Config, converted_dir: pathlib.Path
):
    data = dataclasses.replace(tiny_config.data, data_dir=str(converted_dir))
    with pytest.raises(DataError) as caught:
        splits.open_split(data, split, 10)
    assert split in str(caught.value)


# One file


def instruction(
    path: pathlib.Path, examples: int, skip: int = 0, take: int | None = None
) -> Any:
    """What TFDS says of a file: read `take` of its examples after `skip`."""
    return types.SimpleNamespace(
        filename=str(path),
        skip=skip,
        take=examples - skip if take is None else take,
        examples_in_shard=examples,
    )


PAYLOADS = [bytes([i]) * (7 * i % 50) for i in range(20)]  # one is empty


def test_payloads_come_back_by_number(tmp_path: pathlib.Path):
    one, other = tmp_path / "one", tmp_path / "other"
    write_tfrecord(one, PAYLOADS[:12])
    write_tfrecord(other, PAYLOADS[12:])
    found = tfrecord.TFRecords([instruction(one, 12), instruction(other, 8)])
    assert list(found) == PAYLOADS
    parts = [instruction(other, 8, skip=5, take=2), instruction(one, 12, skip=11)]
    assert list(tfrecord.TFRecords(parts)) == [*PAYLOADS[17:19], PAYLOADS[11]]
    for index in (20, -1):
        with pytest.raises(IndexError):
            found[index]


def test_threads_read_the_right_records(tmp_path: pathlib.Path):
    rng = random.Random(0)
    payloads = [rng.randbytes(rng.randrange(2000)) for _ in range(400)]
    paths = [tmp_path / str(i) for i in range(4)]
    for i, path in enumerate(paths):
        write_tfrecord(path, payloads[100 * i : 100 * (i + 1)])
    found = tfrecord.TFRecords([instruction(path, 100) for path in paths])
    order = rng.choices(range(400), k=4000)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(found.__getitem__, order))
    assert read == [payloads[i] for i in order]


def damaged_read(path: pathlib.Path, examples: int) -> str:
    """The message with which a record of the damaged file is refused."""
    with pytest.raises(tfrecord.TFRecordError) as caught:
        tfrecord.TFRecords([instruction(path, examples)])[0]
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cut", [1, 4, 5, 20, 30])
def test_a_file_that_is_cut_off_is_named(cut: int, tmp_path: pathlib.Path):
    path = tmp_path / "cut"
    write_tfrecord(path, [b"first", b"second", b"last one"])  # 24 bytes the last
    path.write_bytes(path.read_bytes()[:-cut])
    whole = 2 if cut <= 24 else 1
    assert f"hold {whole} whole records" in damaged_read(path, 3)


@pytest.mark.parametrize("examples", [0, 2, 4])
def test_another_number_of_records_is_named(examples: int, tmp_path: pathlib.Path):
    path = tmp_path / "three"
    write_tfrecord(path, [b"first", b"second", b"third"])
    with pytest.raises(tfrecord.TFRecordError) as caught:
        tfrecord.TFRecords([instruction(path, examples, take=1)])[0]
    message = str(caught.value)
    assert str(path) in message and "hold 3 whole records" in message
    assert f"says {examples}" in message


@pytest.mark.parametrize(
    "content",
    [b"", b"x", bytes(11), b"\xff" * 100, b"This is no tfrecord file at all." * 9],
    ids=["empty", "one byte", "a short header", "ones", "text"],
)
def test_garbage_is_named(content: bytes, tmp_path: pathlib.Path):
    path = tmp_path / "garbage"
    path.write_bytes(content)
    damaged_read(path, 3)


def test_a_missing_file_is_named(tmp_path: pathlib.Path):
    damaged_read(tmp_path / "missing", 3)


def test_a_damaged_shard_stops_training_and_is_named(
    tiny_config: config.Config, converted_dir: pathlib.Path, tmp_path: pathlib.Path
):
    target = tmp_path / "digits" / "1.0.0"
    target.mkdir(parents=True)
    for path in (converted_dir / "digits" / "1.0.0").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    damaged = target / "digits-train.tfrecord-00002-of-00004"
    damaged.write_bytes(damaged.read_bytes()[:-100])

    data = dataclasses.replace(tiny_config.data, data_dir=str(tmp_path))
    split = splits.open_split(data, "train", 10)
    batches = batches_lib.train_batches(
        data, split, seed=0, start_example=0, shard=Shard()
    )
    with pytest.raises(tfrecord.TFRecordError, match=damaged.name):
        next(batches)
