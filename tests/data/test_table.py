"""Images that a CSV or Parquet file lists: splits, classes, paths, and bad tables."""

import pathlib
from collections.abc import Sequence

import PIL.Image
import pytest

from vgg_flax import config, errors
from vgg_flax.data import DataError, splits, table

ROWS = [
    (f"photos/{label}{i}.png", label, "val" if i == 2 else "train")
    for label in ("dog", "cat")
    for i in range(3)
]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """With the photos of `ROWS`."""
    (tmp_path / "photos").mkdir()
    for path, *_ in ROWS:
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / path)
    return tmp_path


def write(path: pathlib.Path, rows: Sequence[Sequence[object]], header: str) -> str:
    """A table, in the format that its suffix says."""
    names = header.split(",")
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = zip(*rows, strict=True)
        parquet.write_table(
            pyarrow.table(dict(zip(names, columns, strict=True))), str(path)
        )
        return str(path)
    apart = "\t" if path.suffix == ".tsv" else ","
    lines = [apart.join(map(str, row)) for row in [names, *rows]]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def opened(path: str, split: str, num_classes: int = 0) -> splits.Split:
    return splits.open_any_split("folder", path, split, num_classes)


def labels(split: splits.Split) -> dict[str, str]:
    """Class names by file name."""
    return {
        pathlib.Path(record["key"]).name: split.class_names[record["label"]]
        for record in split.records
    }


@pytest.mark.parametrize("name", ["t.csv", "T.CSV", "t.tsv", "t.parquet"])
def test_a_table_is_a_data_set(name: str, folder: pathlib.Path) -> None:
    path = write(folder / name, ROWS, "path,label,split")
    train = opened(path, "train")
    assert train.class_names == ("cat", "dog")
    assert labels(train) == {f"{c}{i}.png": c for c in ("cat", "dog") for i in (0, 1)}
    assert len(opened(path, "validation")) == 2  # which is called val
    assert len(opened(path, "train[:1]+val")) == 3
    data = config.DataConfig(
        name="folder",
        data_dir=path,
        train_split="auto",
        validation_split="auto",
        test_split="auto",
    )
    resolved = splits.resolved(data)
    assert (resolved.train_split, resolved.validation_split) == ("train", "val")
    assert resolved.test_split == ""


def test_without_splits_all_rows_are_of_train(folder: pathlib.Path) -> None:
    path = write(folder / "t.csv", [row[:2] for row in ROWS], "Path, LABEL ")
    assert len(opened(path, "train")) == len(splits.open_folder(path, 0)) == 6
    with pytest.raises(DataError, match=r"no row of split 'test'; .*'train'"):
        opened(path, "test")


def test_of_several_splits_one_is_to_be_named(folder: pathlib.Path) -> None:
    path = write(folder / "t.csv", ROWS, "path,label,split")
    with pytest.raises(DataError, match=r"has splits 'train', 'val'; name one"):
        splits.open_folder(path, 0)


def test_numbers_are_sorted_as_numbers(folder: pathlib.Path) -> None:
    rows = [("photos/cat0.png", number) for number in (10, 9, 100)]
    path = write(folder / "t.parquet", rows, "path,label")
    assert opened(path, "train").class_names == ("9", "10", "100")


def test_paths_may_be_given_in_full_and_columns_quoted(folder: pathlib.Path) -> None:
    text = (
        f'\ufeff"label";"note";"path"\r\n"a;b";"x";"{folder}/photos/cat0.png"\r\n\r\n'
    )
    (folder / "t.csv").write_text(text)
    split = opened(str(folder / "t.csv"), "train")
    assert labels(split) == {"cat0.png": "a;b"}


BAD: dict[str, tuple[str, bytes, str]] = {
    "other columns": ("t.csv", b"file,class\na,b\n", r"file, class.*path and label"),
    "empty": ("t.csv", b"", "expected path and label"),
    "no rows": ("t.csv", b"path,label\n", "no rows"),
    "no label": ("t.csv", b"path,label\na.png\n", "row 2 has no label"),
    "no path": ("t.csv", b"path,label\na,b\n ,b\n", "row 3 has no path"),
    "no split": ("t.csv", b"path,label,split\na,b,\n", "row 2 has no split"),
    "no UTF-8": ("t.csv", b"path,label\n\xff\xfe,b\n", "is no UTF-8"),
    "a quote": ("t.csv", b'path,label\n"a,b\n', "line 2"),
    "paths": ("t.csv", b"path,label\nnone.png,b\n", r"none\.png.*from .* on"),
    "a long name": ("t.csv", b"path,label\n" + b"a" * 300 + b",b\n", "none of the"),
    "no Parquet": ("t.parquet", b"PAR1nothing", "is no Parquet table"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_line(case: str, tmp_path: pathlib.Path) -> None:
    name, content, message = BAD[case]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.VGGFlaxError, match=message) as caught:
        opened(str(tmp_path / name), "train")
    assert "\n" not in str(caught.value)


def test_a_label_that_training_did_not_have_is_an_error(folder: pathlib.Path) -> None:
    path = write(
        folder / "t.csv", [*ROWS, (ROWS[0][0], "bird", "val")], "path,label,split"
    )
    names = opened(path, "train").class_names
    with pytest.raises(table.TableError, match=r"'bird'.*split val.*'cat', 'dog'"):
        splits.open_any_split("folder", path, "val", 0, names)


def test_a_small_table_is_no_very_large_one(tmp_path: pathlib.Path) -> None:
    rows = [("a.jpg", "cat")] * 200_000
    path = write(tmp_path / "t.parquet", rows, "path,label")
    assert pathlib.Path(path).stat().st_size < 100_000
    with pytest.raises(DataError, match="refused"):
        table.read(path)
    path = write(tmp_path / "u.parquet", rows[:900], "path,label")
    assert len(table.read(path).rows) == 900
    path = write(tmp_path / "v.parquet", [("a" * 90_000, "cat")] * 9, "path,label")
    with pytest.raises(DataError, match="letters"):
        table.read(path)


def test_labels_of_very_many_digits_are_names(tmp_path: pathlib.Path) -> None:
    rows = [("a.jpg", "9" * 4301), ("b.jpg", "7")]
    found = table.read(write(tmp_path / "t.csv", rows, "path,label"))
    assert found.class_names(["train"], 2) == ("7", "9" * 4301)
