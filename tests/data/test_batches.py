"""Splits, training batches and evaluation batches: which examples, in which order."""

import dataclasses
import hashlib
import io
import itertools
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import PIL.Image
import pytest
import samples
import tensorflow_datasets as tfds

from vgg_flax import config
from vgg_flax.data import batches as batches_lib
from vgg_flax.data import splits as splits_lib
from vgg_flax.data.batches import Batch, DataError, Shard
from vgg_flax.data.splits import Split
from vgg_flax.images import augmentation, codec

ONE = Shard()


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def numbered(count: int) -> Split:
    """`count` RGB images of noise; each example's label is its number."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (count, 8, 8, 3), dtype=np.uint8)
    records = [
        {"image": png(image), "label": i, "key": f"image {i}"}
        for i, image in enumerate(images)
    ]
    return Split("numbered", records, tuple(map(str, range(count))))


def damaged(count: int, which: int) -> Split:
    split = numbered(count)
    split.records[which]["image"] = b"no image"
    return split


def settings(**fields: Any) -> config.DataConfig:
    defaults = {
        "train_view": "pad_crop",
        "train_scale": (8, 10),
        "padding": 2,
        "crop_size": 8,
        "test_scale": 8,
        "batch_size": 8,
        "eval_batch_size": 16,
        "num_threads": 2,
        "prefetch": 2,
    }
    return config.DataConfig(**(defaults | fields))


def train(
    data: config.DataConfig,
    split: Split,
    steps: int,
    *,
    seed: int = 0,
    start_step: int = 0,
    shard: Shard = ONE,
) -> list[Batch]:
    start = start_step * data.batch_size
    batches = batches_lib.train_batches(
        data, split, seed=seed, start_example=start, shard=shard
    )
    return list(itertools.islice(batches, steps))


def joined(parts: list[Batch]) -> Batch:
    """The global batch of the processes' parts."""
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture
def digits(tiny_config: config.Config) -> config.DataConfig:
    return tiny_config.data


# Opening splits


def records_of(split: Split) -> list[dict[str, Any]]:
    return [split.records[i] for i in range(len(split))]


def pairs_of(split: Split) -> list[tuple[bytes, int]]:
    return [(record["image"], record["label"]) for record in records_of(split)]


def test_digits_are_sklearns_in_file_order(digits: config.DataConfig):
    splits = [splits_lib.open_split(digits, name, 10) for name in ("train", "test")]
    assert [len(split) for split in splits] == [1437, 360]
    assert splits[0].class_names == tuple("0123456789")

    records = [record for split in splits for record in records_of(split)]
    pixels = np.stack(
        [np.asarray(PIL.Image.open(io.BytesIO(r["image"]))) for r in records]
    )
    images, labels = samples.digits()
    expected = np.round(images * 255 / 16)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal([r["label"] for r in records], labels)


def test_digits_slices_are_disjoint_and_together_the_whole(digits: config.DataConfig):
    whole, most, rest = (
        splits_lib.open_split(digits, split, 10)
        for split in ("train", "train[:90%]", "train[90%:]")
    )
    assert (len(most), len(rest)) == (1293, 144)
    assert pairs_of(most) + pairs_of(rest) == pairs_of(whole)


def test_splits_can_be_added(digits: config.DataConfig):
    both = splits_lib.open_split(digits, "test[-3:]+train[:2]", 10)
    test = splits_lib.open_split(digits, "test", 10)
    first = splits_lib.open_split(digits, "train", 10)
    assert pairs_of(both) == pairs_of(test)[-3:] + pairs_of(first)[:2]


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_of_one_have_the_examples_of_larger_ones(processes: int):
    split = numbered(5)
    whole = train(settings(batch_size=2 * processes), split, steps=6)
    parts = [
        train(
            settings(batch_size=processes),
            split,
            steps=12,
            shard=Shard(process, processes),
        )
        for process in range(processes)
    ]
    in_turn = [batch for step in zip(*parts, strict=True) for batch in step]
    assert all(len(batch["label"]) == 1 for batch in in_turn)
    np.testing.assert_array_equal(
        np.concatenate([batch["label"] for batch in in_turn]),
        np.concatenate([batch["label"] for batch in whole]),
    )


def test_each_record_has_a_key_that_says_where_it_is_from(digits: config.DataConfig):
    split = splits_lib.open_split(digits, "train[90%:]", 10)
    keys = [record["key"] for record in records_of(split)]
    assert len(set(keys)) == len(keys)
    assert all("digits" in key and "train[90%:]" in key for key in keys)


def test_records_end_as_a_sequence_does(digits: config.DataConfig):
    split = splits_lib.open_split(digits, "test[:5]", 10)
    assert list(split.records) == records_of(split)
    with pytest.raises(IndexError):
        split.records[5]


def test_tfds_mock_data_opens_without_tensorflow(tmp_path: pathlib.Path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    examples = [
        {"id": b"train_%d" % i, "image": png(image), "label": 9 - i}
        for i, image in enumerate(images)
    ]
    data = settings(name="cifar10", data_dir=str(tmp_path), crop_size=32, test_scale=32)
    with tfds.testing.mock_data(as_data_source_fn=lambda *_, **__: examples):
        split = splits_lib.open_split(data, "train", 10)
    (batch,) = batches_lib.eval_batches(data, split, shard=ONE)
    np.testing.assert_array_equal(batch["image"][:6], images)
    np.testing.assert_array_equal(batch["label"][:6], [9, 8, 7, 6, 5, 4])


PREPARE_DIGITS = """
import hashlib, sys
from vgg_flax import config
from vgg_flax.data import splits
print("ready", flush=True)
sys.stdin.readline()
data = config.DataConfig(name="digits", data_dir=sys.argv[1])
split = splits.open_split(data, "train", 10)
digest = hashlib.sha256()
for record in (split.records[i] for i in range(len(split))):
    digest.update(record["image"] + bytes([record["label"]]))
print(digest.hexdigest())
"""


@pytest.mark.slow  # each imports TFDS
def test_two_processes_may_prepare_digits_at_once(
    digits: config.DataConfig, tmp_path: pathlib.Path
):
    command = [sys.executable, "-W", "error", "-c", PREPARE_DIGITS, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, **pipes) as one,
        subprocess.Popen(command, stderr=subprocess.PIPE, **pipes) as other,
    ):
        assert one.stdout and other.stdout
        ready = [one.stdout.readline(), other.stdout.readline()]
        for process in (one, other):
            if process.poll() is None:
                process.stdin.write("go\n")
                process.stdin.flush()
        outputs = [process.communicate(timeout=120) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], outputs
    assert ready == ["ready\n", "ready\n"]

    digest = hashlib.sha256()
    for image, label in pairs_of(splits_lib.open_split(digits, "train", 10)):
        digest.update(image + bytes([label]))
    assert [out for out, _ in outputs] == [digest.hexdigest() + "\n"] * 2
    # No scratch folder is left behind.
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


# Training batches


def test_every_epoch_holds_each_example_once_and_none_is_dropped():
    # 53 is prime: 53 batches of 8 are 8 epochs, and no batch but the last ends one.
    batches = train(settings(batch_size=8), numbered(53), 53)
    assert all(batch["mask"].all() for batch in batches)
    epochs = np.concatenate([batch["label"] for batch in batches]).reshape(8, 53)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(53))
    assert len({tuple(epoch) for epoch in epochs}) == 8  # reshuffled at each


def test_a_batch_may_hold_several_epochs():
    (batch,) = train(settings(batch_size=16), numbered(5), 1)
    for epoch in (batch["label"][0:5], batch["label"][5:10], batch["label"][10:15]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(5))


def test_each_image_keeps_its_label():
    # Without jitter the one possible view is the image, or its mirror.
    data = settings(train_scale=(8, 8), padding=0)
    split = numbered(20)
    images = [
        np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
        for record in split.records
    ]
    mirrored = 0
    for batch in train(data, split, 10):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            original = images[label]
            flipped = not np.array_equal(image, original)
            mirrored += flipped
            if flipped:
                np.testing.assert_array_equal(image, original[:, ::-1])
    assert 20 <= mirrored <= 60  # of 80


def test_an_example_is_seen_differently_each_time():
    views = {}
    for batch in train(settings(), numbered(8), 30):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            views.setdefault(int(label), set()).add(image.tobytes())
    assert all(len(seen) >= 20 for seen in views.values())  # of 30


@pytest.mark.parametrize("color_shift", [0.0, 0.1])
def test_the_seed_decides_order_and_pixels(color_shift: float):
    data, split = settings(color_shift=color_shift), numbered(53)
    first, again, other = (train(data, split, 8, seed=seed) for seed in (7, 7, 8))
    for one, two in zip(first, again, strict=True):
        assert_equal(one, two)
    for name in first[0].keys() - {"mask", "index"}:
        assert (joined(first)[name] != joined(other)[name]).any(), name


@pytest.mark.parametrize(("seed", "start_step"), [(0, 0), (7, 9), (2**31, 10**9)])
def test_views_are_drawn_as_grain_draws_for_single_examples(seed: int, start_step: int):
    """Which earlier versions left to Grain: their runs go on as they would have."""
    split, data = numbered(53), settings(color_shift=0.1, flip=True)
    batches = train(data, split, 3, seed=seed, start_step=start_step)
    start, seen = start_step * data.batch_size, joined(batches)
    view = augmentation.make_train_view(data)

    def draw(number: int, rng: np.random.Generator) -> Batch:
        record = split.records[seen["label"][number - start]]
        image = view(codec.decode(record["image"]), rng)
        return {"image": image, "color_shift": augmentation.color_shift(data, rng)}

    drawn = grain.MapDataset.range(start + 24).seed(seed).random_map(draw)
    for place in range(24):
        expected: Any = drawn[start + place]
        for name, value in expected.items():
            np.testing.assert_array_equal(seen[name][place], value, err_msg=name)


@pytest.mark.parametrize("start_step", [1, 5, 17, 106])
def test_a_run_can_start_at_any_step(start_step: int):
    data, split = settings(color_shift=0.1), numbered(53)
    whole = train(data, split, start_step + 3)
    resumed = train(data, split, 3, start_step=start_step)
    for one, two in zip(whole[start_step:], resumed, strict=True):
        assert_equal(one, two)


def test_a_run_can_start_at_its_billionth_step():
    # Walking through all the steps before it would never end.
    (batch,) = train(settings(), numbered(53), 1, start_step=10**9)
    assert batch["image"].shape == (8, 8, 8, 3)


@pytest.mark.parametrize("sizes", [(8, 16), (16, 8), (4, 12, 8), (12, 20)])
@pytest.mark.parametrize("processes", [1, 2])
def test_batches_of_another_size_go_on_where_the_others_ended(
    sizes: tuple[int, ...], processes: int
):
    split, start, parts = numbered(53), 0, []
    for size in sizes:
        data = settings(batch_size=size, color_shift=0.1)
        shards = [
            batches_lib.train_batches(
                data, split, seed=0, start_example=start, shard=Shard(i, processes)
            )
            for i in range(processes)
        ]
        for batch in itertools.islice(zip(*shards, strict=True), 7):
            parts.append({k: v for k, v in joined(list(batch)).items() if k != "index"})
        start += 7 * size
    together = joined(parts)
    (whole,) = train(settings(batch_size=start, color_shift=0.1), split, 1)
    for name, values in together.items():
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("start_step", [0, 9])
def test_processes_share_the_same_global_batches(processes: int, start_step: int):
    data, split = settings(batch_size=16, color_shift=0.1), numbered(53)
    expected = train(data, split, 6, start_step=start_step)
    shards = [Shard(process, processes) for process in range(processes)]
    parts = [
        train(data, split, 6, start_step=start_step, shard=shard) for shard in shards
    ]
    for whole, *batch in zip(expected, *parts, strict=True):
        assert {len(part["label"]) for part in batch} == {16 // processes}
        assert_equal(joined(batch), whole)
        np.testing.assert_array_equal(joined(batch)["index"], np.arange(16))


def test_a_fingerprint_tells_splits_apart(
    digits: config.DataConfig, tmp_path: pathlib.Path
):
    split = numbered(53)
    prints = {splits_lib.fingerprint(split)}
    assert prints == {splits_lib.fingerprint(numbered(53))}
    prints.add(splits_lib.fingerprint(numbered(52)))
    for field, value in (("label", 5), ("key", "another"), ("image", b"another")):
        records = [*split.records[:-1], {**split.records[-1], field: value}]
        prints.add(splits_lib.fingerprint(dataclasses.replace(split, records=records)))
    records = list(reversed(split.records))
    prints.add(splits_lib.fingerprint(dataclasses.replace(split, records=records)))
    assert len(prints) == 6

    for i in range(40):
        path = tmp_path / "train" / "a" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.zeros((8, 8), np.uint8)))

    def opened() -> str:
        split = splits_lib.open_any_split("folder", str(tmp_path), "train", 1)
        return splits_lib.fingerprint(split)

    names = {opened()}
    for i in (3, 17, 25):  # any image's name counts, read or not
        (tmp_path / "train" / "a" / f"{i:02}.png").rename(
            tmp_path / "train" / "a" / f"{i:02}b.png"
        )
        names.add(opened())
    assert len(names) == 4
    parts = {
        splits_lib.fingerprint(splits_lib.open_split(digits, name, 10))
        for name in ("train", "train[:90%]", "train[10%:]", "test")
    }
    assert len(parts) == 4


@pytest.mark.parametrize(("num_threads", "prefetch"), [(1, 1), (8, 1), (3, 40)])
def test_threads_and_prefetching_change_nothing(num_threads: int, prefetch: int):
    split = numbered(53)
    expected = train(settings(color_shift=0.1), split, 8)
    data = settings(color_shift=0.1, num_threads=num_threads, prefetch=prefetch)
    for one, two in zip(expected, train(data, split, 8), strict=True):
        assert_equal(one, two)


@pytest.mark.parametrize("color_shift", [0.0, 0.1])
@pytest.mark.parametrize("processes", [1, 2])
def test_training_batches_have_the_announced_shapes(processes: int, color_shift: float):
    data = settings(batch_size=32, color_shift=color_shift)
    shard = Shard(processes - 1, processes)
    (batch,) = train(data, numbered(53), 1, shard=shard)
    announced = batches_lib.batch_shapes(data, (8, 4 // processes), train=True)
    assert announced == _with_device_axis(batch)
    assert ("color_shift" in announced) == bool(color_shift)
    assert announced["image"].shape == (8, 4 // processes, 8, 8, 3)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_batches_have_the_announced_shapes(
    processes: int, digits: config.DataConfig
):
    digits = dataclasses.replace(digits, eval_batch_size=48)
    split = splits_lib.open_split(digits, "test", 10)
    shard = Shard(processes - 1, processes)
    announced = batches_lib.batch_shapes(digits, (8, 6 // processes), train=False)
    for batch in batches_lib.eval_batches(digits, split, shard=shard):
        assert announced == _with_device_axis(batch)
    assert announced["image"].shape == (8, 6 // processes, 32, 32, 1)


def _with_device_axis(batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct((8, len(value) // 8, *value.shape[1:]), value.dtype)
        for name, value in batch.items()
    }


# Evaluation batches


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("count", "steps"), [(53, 4), (48, 3), (3, 1)])
def test_evaluation_sees_each_example_once_in_order(
    count: int, steps: int, processes: int
):
    data, split = settings(eval_batch_size=16), numbered(count)
    parts = [
        list(batches_lib.eval_batches(data, split, shard=Shard(i, processes)))
        for i in range(processes)
    ]
    assert {len(batches) for batches in parts} == {steps}
    assert batches_lib.num_eval_steps(data, split) == steps
    batches = [joined(list(batch)) for batch in zip(*parts, strict=True)]
    assert {len(batch["label"]) for batch in batches} == {16}

    together = joined(batches)
    np.testing.assert_array_equal(together["mask"], np.arange(16 * steps) < count)
    np.testing.assert_array_equal(together["label"][:count], np.arange(count))
    images = [
        np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
        for record in split.records
    ]
    np.testing.assert_array_equal(together["image"][:count], images)
    assert not together["image"][count:].any() and not together["label"][count:].any()
    assert together.keys() == {"image", "label", "mask"}


# Bad images and labels


def drain(data: config.DataConfig, split: Split, how: str) -> None:
    batches: Iterator[Batch]
    if how == "train":
        batches = iter(train(data, split, 10))
    else:
        batches = batches_lib.eval_batches(data, split, shard=ONE)
    for _ in batches:
        pass


@pytest.mark.parametrize("how", ["train", "eval"])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_bad_image_stops_the_run_and_is_named(how: str, num_threads: int):
    data = settings(num_threads=num_threads)
    with pytest.raises(
        DataError, match=r"image 7: .*data\.on_bad_image=skip"
    ) as caught:
        drain(data, damaged(53, 7), how)
    assert "8 bytes" in str(caught.value)


def test_evaluation_can_skip_a_bad_image(capsys: pytest.CaptureFixture[str]):
    data = settings(on_bad_image="skip")
    batches = list(batches_lib.eval_batches(data, damaged(53, 7), shard=ONE))
    together = joined(batches)
    expected = np.arange(64) < 53
    expected[7] = False
    np.testing.assert_array_equal(together["mask"], expected)
    np.testing.assert_array_equal(together["label"][:53], np.arange(53))
    assert not together["image"][7].any()
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("train_view", ["paper", "resized_crop", "pad_crop"])
def test_training_can_skip_a_bad_image(
    train_view: str, capsys: pytest.CaptureFixture[str]
):
    data = settings(on_bad_image="skip", train_view=train_view)
    expected = joined(train(data, numbered(53), 53))
    together = joined(train(data, damaged(53, 7), 53))
    bad = together["label"] == 7
    assert bad.sum() == 8  # once in each of the 8 epochs
    np.testing.assert_array_equal(together["mask"], ~bad)
    assert not together["image"][bad].any()
    # Its neighbours are what they would be beside a good one.
    np.testing.assert_array_equal(together["label"], expected["label"])
    np.testing.assert_array_equal(together["image"][~bad], expected["image"][~bad])
    (told,) = capsys.readouterr().err.splitlines()  # in 8 epochs
    assert told.startswith("skipped image 7: cannot decode 8 bytes")


@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
@pytest.mark.parametrize("how", ["train", "eval"])
@pytest.mark.parametrize("label", [-1, 53])
def test_a_label_out_of_range_stops_the_run(label: int, how: str, on_bad_image: str):
    split = numbered(53)
    split.records[9]["label"] = label
    with pytest.raises(
        DataError, match=rf"image 9 has label {label}; expected 0 to 52"
    ):
        drain(settings(on_bad_image=on_bad_image), split, how)


@pytest.fixture
def folder_split(tmp_path: pathlib.Path) -> Split:
    """20 images of 9 x 9 in ROOT/train/a and b, listed."""
    for i in range(20):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (9, 9), (i, 0, 0)).save(path)
    return splits_lib.open_any_split("folder", str(tmp_path), "train", 2)


@pytest.mark.parametrize("how", ["train", "eval"])
def test_an_image_that_vanishes_stops_the_run_or_is_left_out(
    how: str,
    folder_split: Split,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    path = tmp_path / "train" / "a" / "04.png"
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: No such file.*on_bad_image=skip"):
        drain(settings(), folder_split, how)
    drain(settings(on_bad_image="skip"), folder_split, how)
    assert f"skipped {path}: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
@pytest.mark.parametrize("how", ["train", "eval"])
@pytest.mark.parametrize("lost", ["train/a", "train"])
def test_a_folder_that_vanishes_stops_the_run(
    lost: str, how: str, on_bad_image: str, folder_split: Split, tmp_path: pathlib.Path
):
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"train/[ab] has gone, with its images \(.*; bri"
    ):
        drain(settings(on_bad_image=on_bad_image), folder_split, how)


@pytest.mark.parametrize("how", ["paper", "pad_crop", "eval"])
def test_a_long_and_narrow_image_is_left_out_like_a_bad_one(
    how: str,
    folder_split: Split,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    path = tmp_path / "train" / "a" / "04.png"
    PIL.Image.new("RGB", (3000, 1)).save(path)
    monkeypatch.setattr(codec, "MAX_PIXELS", 20_000)  # 8 x 24,000 are more
    data = settings(train_view="paper" if how == "eval" else how)
    skipping = dataclasses.replace(data, on_bad_image="skip")
    with pytest.raises(DataError, match=rf"{path}: rescaled from 3000 x 1, .*=skip"):
        drain(data, folder_split, how if how == "eval" else "train")
    drain(skipping, folder_split, how if how == "eval" else "train")
    assert f"skipped {path}: rescaled from 3000 x 1, " in capsys.readouterr().err


# What can't be opened


def assert_refused(
    data: config.DataConfig, split: str, *phrases: str, num_classes: int = 10
) -> None:
    """`open_split` raises a DataError whose message holds all the phrases."""
    with pytest.raises(DataError) as caught:
        splits_lib.open_split(data, split, num_classes)
    for phrase in phrases:
        assert phrase in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"), [("mnst", "mnist"), ("digts", "digits"), ("cifar", "cifar100")]
)
def test_an_unknown_data_set_is_refused_with_names_near_it(
    name: str, near: str, digits: config.DataConfig
):
    data = dataclasses.replace(digits, name=name)
    assert_refused(data, "train", repr(name), near, "--config.data.name=folder")


@pytest.mark.parametrize(
    "name", ["", "no such set", "../digits", "mnist/no_such_config", "mnist:9.9.9"]
)
def test_a_malformed_name_config_or_version_is_refused(
    name: str, digits: config.DataConfig
):
    assert_refused(dataclasses.replace(digits, name=name), "train", repr(name))


def test_an_unknown_split_is_refused_with_those_there_are(digits: config.DataConfig):
    assert_refused(digits, "validation", "'validation'", "digits", "train", "test")


@pytest.mark.parametrize(
    "split", ["train[", "train[:9x]", "train[:120%]", "train[:9000]", "", "train+"]
)
def test_a_malformed_split_is_refused(split: str, digits: config.DataConfig):
    assert_refused(digits, split, repr(split), "digits")


@pytest.mark.parametrize("split", ["train[:0]", "train[5:2]", "test[50%:50%]"])
def test_an_empty_split_is_refused(split: str, digits: config.DataConfig):
    assert_refused(digits, split, split, "digits", "empty")


def test_a_data_set_that_is_not_prepared_is_refused_with_the_command(
    tmp_path: pathlib.Path,
):
    data = settings(name="cifar10", data_dir=str(tmp_path))
    command = f"vgg-flax prepare cifar10 --data-dir {tmp_path}"
    assert_refused(data, "train", "'cifar10'", "not prepared", command)


@pytest.mark.parametrize("num_classes", [9, 1000])
def test_another_number_of_classes_is_refused(
    num_classes: int, digits: config.DataConfig
):
    phrases = ("10 classes", f"={num_classes}", "--config.model.num_classes=10")
    assert_refused(digits, "train", *phrases, num_classes=num_classes)


def test_a_folder_without_a_folder_is_refused():
    data = settings(name="folder", data_dir="")
    assert_refused(data, "train", "'folder'", "--config.data.data_dir=")


@pytest.mark.parametrize(
    "name", ["voc/2007", "div2k/bicubic_x2", "lfw", "imdb_reviews"]
)
def test_a_data_set_not_of_images_with_class_labels_is_refused(
    name: str, tmp_path: pathlib.Path
):
    # No labels, an image as the label, a text as the label, a text as the image.
    data = settings(name=name, data_dir=str(tmp_path))
    assert_refused(data, "train", repr(name), "(image, class label)")


def test_the_message_of_a_bad_image_holds_no_address():
    with pytest.raises(DataError) as caught:
        drain(settings(), damaged(53, 7), "eval")
    assert " at 0x" not in str(caught.value)


def test_a_cache_reads_each_record_once_and_changes_nothing():
    class Counting:
        def __init__(self, records: Any):
            self.records, self.reads = records, 0

        def __len__(self) -> int:
            return len(self.records)

        def __getitem__(self, index: int) -> dict[str, Any]:
            self.reads += 1
            return self.records[index]

    plain = numbered(10)
    batches = []
    for cache, expected in ((False, 40), (True, 10)):
        counting = Counting(plain.records)
        split = dataclasses.replace(plain, records=counting)
        examples = batches_lib.DecodedExamples(settings(cache=cache), split)
        batches.append([examples[i % 10]["label"] for i in range(40)])
        assert counting.reads == expected
    assert batches[0] == batches[1]
    one, two = (
        [next(stream) for _ in range(6)]
        for stream in (
            batches_lib.train_batches(
                settings(cache=cache, batch_size=4, flip=True),
                plain,
                seed=0,
                start_example=0,
                shard=Shard(),
            )
            for cache in (False, True)
        )
    )
    for ours, theirs in zip(one, two, strict=True):
        assert_equal(ours, theirs)
