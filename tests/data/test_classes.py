"""Class names that look the same: one class in several splits, an error in one."""

import os
import pathlib
import unicodedata

import numpy as np
import PIL.Image
import pytest

from vgg_flax.data import DataError, splits, table
from vgg_flax.evaluation import label_sets

# As one character, or as a letter and what is put on it; the last, as two jamo.
TWINS = [("\u00e9", "e\u0301"), ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m")]
TWINS.append(("\ud55c", "\u1112\u1161\u11ab"))


def write(root: pathlib.Path, *folders: str) -> None:
    for i, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        PIL.Image.new("RGB", (40, 40), (9 * i, 0, 0)).save(root / folder / "p.png")


def write_table(path: pathlib.Path, rows: list[tuple[str, str]]) -> str:
    """Of rows of a label and a split; all have one photo."""
    write(path.parent, "photos")
    lines = [f"photos/p.png,{label},{split}" for label, split in rows]
    path.write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("twins", TWINS)
def test_in_one_split_they_are_refused_and_both_are_seen(
    twins: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    assert unicodedata.normalize("NFD", twins[0]) == twins[1]
    write(tmp_path / "images", *(f"train/{name}" for name in (*twins, "b")))
    rows = [(name, "train") for name in (*twins, "b")]
    listed = write_table(tmp_path / "table.csv", rows)
    for data in (str(tmp_path / "images"), listed):
        with pytest.raises(DataError, match="look the same") as caught:
            splits.open_any_split("folder", data, "train", 0)
        for twin in twins:
            assert twin.encode("ascii", "backslashreplace").decode().replace(
                "\\x", "\\u00"
            ) in str(caught.value)


@pytest.mark.parametrize("twins", TWINS)
def test_in_two_splits_they_are_one_class(
    twins: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    images = tmp_path / "images"
    write(images, f"train/{twins[0]}", "train/zz", f"test/{twins[1]}", "test/zz")
    rows = [(twins[0], "train"), ("zz", "train"), (twins[1], "test"), ("zz", "test")]
    listed = write_table(tmp_path / "table.csv", rows)
    for data in (str(images), listed):
        train = splits.open_any_split("folder", data, "train", 0)
        assert len(train.class_names) == 2 and twins[0] in train.class_names
        test = splits.open_any_split("folder", data, "test", 0, train.class_names)
        assert sorted(r["label"] for r in map(test.records.__getitem__, (0, 1))) == [
            0,
            1,
        ]
        both = splits.open_any_split("folder", data, "train+test", 0)
        assert len(both.class_names) == 2 and len(both) == 4
        opened = label_sets.open_images(data, "test", train.class_names, 2)
        labels = {opened.labels(opened.split.records[i]) for i in (0, 1)}
        assert labels == {(0,), (1,)}
        assert not any("no image of" in remark for remark in opened.split.remarks)


def test_photos_that_look_the_same_are_two(tmp_path: pathlib.Path) -> None:
    for i, name in enumerate(TWINS[0]):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "train" / "a" / f"{name}.png"
        PIL.Image.new("RGB", (40, 40), (9 * i, 0, 0)).save(path)
    split = splits.open_any_split("folder", str(tmp_path), "train", 0)
    assert len({split.records[i]["image"] for i in range(2)}) == 2
    assert len({split.records[i]["key"] for i in range(2)}) == 2


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe\x80", b"\xe6\x9d"])
def test_folders_and_photos_that_are_no_utf8_are_read(
    name: bytes, tmp_path: pathlib.Path
) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"train", name)
    os.makedirs(folder)
    with open(os.path.join(folder, name + b".png"), "wb") as stream:
        PIL.Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(stream, "png")
    split = splits.open_any_split("folder", str(tmp_path), "train", 0)
    assert os.fsencode(split.class_names[0]) == name
    assert len(splits.fingerprint(split)) == 12
    assert len(split.records.fingerprint()) == 64
    with pytest.raises(DataError) as caught:
        splits.open_any_split("folder", str(tmp_path), "train", 0, ("b",))
    assert str(caught.value).encode()  # names are escaped in it
    with pytest.raises(DataError, match=r"is no UTF-8"):
        path = tmp_path / "table.csv"
        path.write_bytes(b"path,label\na.png," + name)
        table.read(path)
