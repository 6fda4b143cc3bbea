"""Images that a table lists: CSV, TSV or Parquet, columns path, label and split."""

import csv
import dataclasses
import functools
import io
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from vgg_flax import errors, storage
from vgg_flax.data import DataError, classes, folder, imagenet

SUFFIXES = (".csv", ".tsv", ".parquet")
WHOLE = "train"  # the split that all rows are of where there is no such column
_LONGEST = 10_000  # letters of a path or a label; systems take half of that
# Of Parquet, which can say a million times the same in some bytes: real paths differ.
_ROWS_FLOOR, _ROWS_A_BYTE = 1000, 0.5
_UNFOLD_FLOOR, _UNFOLD_FACTOR = 64 << 20, 16
_LOOKED_AT = 32  # paths of a split; if none of these is there, none will be


class TableError(DataError):
    """A table that can't be read, or has a row without a path or a label."""


class Row(NamedTuple):
    """An image: its path as written, its class, its split."""

    path: str
    label: str
    split: str


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a table, in their order.

    Attributes:
      file: the table; relative paths start from its folder.
      rows: at least one.
    """

    file: epath.Path
    rows: tuple[Row, ...]

    def splits(self) -> list[str]:
        """Their names, sorted."""
        return sorted({row.split for row in self.rows})

    def class_names(self, splits: Sequence[str], num_classes: int) -> tuple[str, ...]:
        """The labels of some splits together, in the order of the net's outputs.

        Numbers by their value, others as strings; ImageNet's order where `num_classes`
        is 1000 and all are synsets.

        Raises:
          TableError: no such split.
          DataError: two labels in one split that look the same.
        """
        found = classes.merged(map(self._labels_of, splits))
        synsets = imagenet.synsets()
        if num_classes == len(synsets) and found <= set(synsets):
            return synsets
        if all(label.isdecimal() and len(label) < 20 for label in found):
            return tuple(sorted(found, key=lambda label: (int(label), label)))
        return tuple(sorted(found))

    def list_images(self, split: str, class_names: Sequence[str]) -> folder.Listing:
        """A split's labelled images, in a fixed shuffle of the table's order.

        Raises:
          TableError: no such split, a label that is none of `class_names`, or paths
            that lead nowhere.
          DataError: two labels that look the same.
        """
        rows = self._rows_of(split)
        label_of = classes.LabelOf(class_names)
        names = classes.merged([self._labels_of(split)])
        if strangers := sorted(name for name in names if name not in label_of):
            raise TableError(
                f"{self.file} has labels {folder.some(strangers)} in split {split}, "
                f"and the classes are {folder.some(class_names)}"
            )
        items = [
            folder.Item(self._path(row), label_of[row.label], f"{row.label}/{row.path}")
            for row in rows
        ]
        first = items[:_LOOKED_AT]
        if not any(_exists(item.path) for item in first):
            raise TableError(
                f"{self.file}: none of the first {len(first)} paths of split {split} "
                f"is there: {errors.shown(str(first[0].path))}; expected paths in "
                f"full, or from {self.file.parent} on"
            )
        random.Random(0).shuffle(items)
        return folder.Listing(items)

    def _labels_of(self, split: str) -> tuple[str, set[str]]:
        """Those of a split, behind its name for people."""
        labels = {row.label for row in self._rows_of(split)}
        return f"{self.file}, split {split}", labels

    def _rows_of(self, split: str) -> list[Row]:
        name = folder.find_split(self.splits(), split)
        if name is None:
            raise TableError(
                f"{self.file} has no row of split {split!r}; its splits are: "
                f"{folder.some(self.splits())}"
            )
        return [row for row in self.rows if row.split == name]

    def _path(self, row: Row) -> epath.Path:
        path = epath.Path(row.path)
        return path if path.is_absolute() else self.file.parent / path


def _exists(path: epath.Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False


def is_table(path: epath.PathLike) -> bool:
    """By its name."""
    return epath.Path(path).suffix.lower() in SUFFIXES


def read(path: epath.PathLike) -> Table:
    """Reads a table with columns `path`, `label` and, if there is one, `split`.

    CSV in UTF-8, its columns apart by commas, semicolons or tabs. Without a column of
    splits all rows are of `WHOLE`.

    Raises:
      TableError: no such file, or no such table.
    """
    file = storage.expanded(path)
    if not file.is_file():
        raise TableError(f"{file}: there is no such table")
    return _parsed(file, file.read_bytes())


@functools.lru_cache(maxsize=1)  # each split of a run asks for the same one
def _parsed(file: epath.Path, content: bytes) -> Table:
    is_parquet = file.suffix.lower() == ".parquet"
    rows = []
    for number, values in (_parquet_rows if is_parquet else _csv_rows)(file, content):
        cells = {"split": WHOLE, **values}
        for column, cell in cells.items():
            if cell is None or not str(cell).strip():
                raise TableError(
                    f"{file}, row {number} has no {column}; expected a path and a "
                    "label in every row, and a split where there is such a column"
                )
            if len(str(cell)) > _LONGEST:
                raise TableError(
                    f"{file}, row {number} has a {column} of {len(str(cell))} letters"
                )
        rows.append(Row(**{key: str(cell).strip() for key, cell in cells.items()}))
    if not rows:
        raise TableError(f"{file} has no rows; expected one an image")
    return Table(file, tuple(rows))


def _columns(file: epath.Path, header: Sequence[str]) -> dict[str, int]:
    """Where path, label and split stand."""
    names = [name.strip().lower() for name in header]
    found = {name: names.index(name) for name in ("path", "label") if name in names}
    if len(found) < 2:
        raise TableError(
            f"{file} has columns {errors.shown(', '.join(header))}; expected path and "
            "label, and if there is one split"
        )
    return found | ({"split": names.index("split")} if "split" in names else {})


def _csv_rows(file: epath.Path, content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """By the number of the line where a row ends, the header's being 1."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"{file} is no UTF-8: {error.reason}; save it so") from error
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        places = _columns(file, next(reader, []))
        for cells in reader:
            if not cells:
                continue  # an empty line is no row
            cut = len(cells)
            row = {k: cells[i] if i < cut else None for k, i in places.items()}
            yield reader.line_num, row
    except csv.Error as error:
        raise TableError(f"{file}, line {reader.line_num}: {error}") from error


def _parquet_rows(
    file: epath.Path, content: bytes
) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TableError(
            f"{file} needs the package pyarrow: pip install 'vgg-flax[parquet]'"
        ) from error
    try:
        opened = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        places = _columns(file, opened.schema_arrow.names)
        names = {key: opened.schema_arrow.names[i] for key, i in places.items()}
        _check_unfolded(file, len(content), opened.metadata)
        # What the file says once and names often takes no more memory here.
        options: Any = {"read_dictionary": list(names.values())}
        opened = pyarrow.parquet.ParquetFile(io.BytesIO(content), **options)
        table = opened.read(columns=list(names.values()))
        table.validate(full=True)  # texts that are UTF-8, indices of them that exist
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = errors.shown(str(error))
        raise TableError(f"{file} is no Parquet table: {message}") from error
    columns = [_cells(table.column(name)) for name in names.values()]
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        yield number, dict(zip(names, cells, strict=True))


def _check_unfolded(file: epath.Path, size: int, metadata: Any) -> None:
    """Raises TableError where few bytes claim to be very many rows or letters."""
    parts = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    unfolded = sum(part.total_byte_size for part in parts)
    rows = metadata.num_rows
    is_much = unfolded > _UNFOLD_FLOOR + _UNFOLD_FACTOR * size
    if is_much or rows > _ROWS_FLOOR + _ROWS_A_BYTE * size:
        raise TableError(
            f"{file}: {size} bytes claim to be {rows} rows of {unfolded} bytes: "
            "refused, as no list of images is like that; if it is yours, save it as CSV"
        )


def _cells(column: Any) -> Iterator[Any]:
    for chunk in column.chunks:
        if hasattr(chunk, "dictionary"):
            values = chunk.dictionary.to_pylist()
            for index in chunk.indices.to_pylist():
                yield None if index is None else values[index]
        else:
            yield from chunk.to_pylist()
